//! The products of gpt2-large: one token (decode), a prompt (prefill), the float output head, and
//! reading a checkpoint.
//!
//! `cargo bench -p llm-int8-kernels`. The peer is the same product in f32 by the `gemm` crate, which
//! candle multiplies with. `bandwidth/sum of bytes` is what reading alone costs.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use gemm::Parallelism;
use half::{bf16, f16};
use llm_int8_kernels as kernels;
use llm_int8_kernels::{
    Element, Int8WeightRef, Isa, KernelError, MatMut, MatRef, OutlierScope, QuantizedActivations, dense,
    linear, quantize_activations, quantize_weight, quantize_weight_transposed,
};
use rayon::prelude::*;
use std::hint::black_box;
use std::time::Duration;

type Result = std::result::Result<(), KernelError>;

/// Linear layers of a gpt2-large block as (K, N), and its blocks.
const SHAPES: [(usize, usize); 4] = [(1280, 3840), (1280, 1280), (1280, 5120), (5120, 1280)];
const BLOCKS: usize = 36;
const HEAD: (usize, usize) = (1280, 50257);

/// Numbers in -1..1 without structure.
fn noise(count: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as i32 as f32 / i32::MAX as f32
    };
    (0..count).map(|_| next()).collect()
}

struct Layer {
    inputs: usize,
    outputs: usize,
    codes: Vec<i8>,
    absmax: Vec<f32>,
}

impl Layer {
    fn new((inputs, outputs): (usize, usize)) -> Self {
        let codes = noise(inputs * outputs).iter().map(|x| (x * 127.0) as i8).collect();
        Self { inputs, outputs, codes, absmax: vec![0.5; outputs] }
    }

    fn forward(&self, isa: Isa, a: &QuantizedActivations, out: &mut [f32]) -> Result {
        let w = Int8WeightRef::new(MatRef::new(&self.codes, self.outputs, self.inputs)?, &self.absmax)?;
        let rows = a.rows();
        let out = MatMut::new(&mut out[..rows * self.outputs], rows, self.outputs)?;
        linear(isa, a, &kernels::Layer::new(w), out)
    }
}

/// Quantises the activations (K = 1280 and K = 5120) and multiplies them with every layer.
fn token(isa: Isa, layers: &[Layer], x: &[Vec<f32>; 2], rows: usize, out: &mut [f32]) -> Result {
    for layer in layers {
        let a = MatRef::new(&x[usize::from(layer.inputs == 5120)], rows, layer.inputs)?;
        let a = quantize_activations(isa, a, 6.0, OutlierScope::Batch);
        layer.forward(isa, &a, out)?;
    }
    Ok(())
}

/// Noise in which some columns are outliers in a quarter of the rows.
fn activations(rows: usize, columns: usize) -> [Vec<f32>; 2] {
    [1280, 5120].map(|inputs| {
        let mut x = noise(rows * inputs);
        for (m, row) in x.chunks_mut(inputs).enumerate() {
            (0..columns).filter(|c| (c + m) % 4 == 0).for_each(|c| row[c * 211 % inputs] = 9.0);
        }
        x
    })
}

fn decode(c: &mut Criterion) {
    let layers: Vec<Layer> = (0..BLOCKS).flat_map(|_| SHAPES.map(Layer::new)).collect();
    let bytes: usize = layers.iter().map(|layer| layer.codes.len()).sum();
    let (x, mut out) = (activations(1, 24), vec![0f32; 5120]);
    let mut group = c.benchmark_group("decode gpt2-large");
    group.throughput(Throughput::Bytes(bytes as u64));
    group.bench_function("bandwidth/sum of bytes", |b| {
        b.iter(|| layers.iter().map(|layer| sum_of_bytes(&layer.codes)).fold(0, u64::wrapping_add));
    });
    group.bench_function(format!("int8 {}", Isa::detect().name()), |b| {
        b.iter(|| token(Isa::detect(), &layers, &x, 1, black_box(&mut out)));
    });
    group.finish();
}

/// Every byte read once, with both threads, as fast as the compiler vectorises it.
fn sum_of_bytes(codes: &[i8]) -> u64 {
    let sum = |chunk: &[i8]| {
        let (words, _) = chunk.as_chunks::<8>();
        words.iter().fold(0u64, |sum, word| sum.wrapping_add(u64::from_ne_bytes(word.map(|x| x as u8))))
    };
    codes.par_chunks(256 * 1024).map(sum).reduce(|| 0, u64::wrapping_add)
}

fn prefill(c: &mut Criterion) {
    // One block: its codes (20 MB) leave the inner caches between uses as a whole model's do.
    let layers = SHAPES.map(Layer::new);
    let macs: usize = layers.iter().map(|layer| layer.codes.len()).sum();
    let mut group = c.benchmark_group("prefill one block of gpt2-large");
    for (rows, columns) in [(16, 6), (128, 6), (512, 6), (128, 200)] {
        let (x, mut out) = (activations(rows, columns), vec![0f32; rows * 5120]);
        group.throughput(Throughput::Elements((macs * rows) as u64));
        group.bench_function(
            format!("int8 {}/{rows} rows, {columns} outlier columns", Isa::detect().name()),
            |b| {
                b.iter(|| token(Isa::detect(), &layers, &x, rows, black_box(&mut out)));
            },
        );
    }
    let (rows, (inputs, outputs)) = (128, SHAPES[2]);
    let (x, w, mut out) = (noise(rows * inputs), noise(inputs * outputs), vec![0f32; rows * outputs]);
    group.throughput(Throughput::Elements((inputs * outputs * rows) as u64));
    group.bench_function("peer: gemm crate, f32, 1280×5120/128", |b| {
        b.iter(|| peer(rows, inputs, outputs, &x, &w, black_box(&mut out)));
    });
    group.bench_function("dense f32 avx2, 1280×5120/128", |b| {
        b.iter(|| -> Result {
            let (a, w) = (MatRef::new(&x, rows, inputs)?, MatRef::new(&w, outputs, inputs)?);
            dense::linear(Isa::detect(), a, w, None, MatMut::new(black_box(&mut out), rows, outputs)?)
        });
    });
    group.finish();
}

/// `x · wᵀ` by the gemm crate.
#[expect(unsafe_code, reason = "the gemm crate takes pointers")]
fn peer(rows: usize, inputs: usize, outputs: usize, x: &[f32], w: &[f32], out: &mut [f32]) {
    assert!(x.len() == rows * inputs && w.len() == inputs * outputs && out.len() == rows * outputs);
    let (k, n) = (inputs as isize, outputs as isize);
    // SAFETY: the strides describe the three slices, whose lengths were checked.
    unsafe {
        gemm::gemm(
            rows,
            outputs,
            inputs,
            out.as_mut_ptr(),
            1,
            n,
            false,
            x.as_ptr(),
            1,
            k,
            w.as_ptr(),
            k,
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            Parallelism::Rayon(0),
        );
    }
}

fn head(c: &mut Criterion) {
    let (inputs, outputs) = HEAD;
    let x = noise(inputs);
    let mut group = c.benchmark_group("output head of gpt2-large");
    head_of(
        &mut group,
        "f16",
        &x,
        &noise(inputs * outputs).into_iter().map(f16::from_f32).collect::<Vec<_>>(),
    );
    head_of(
        &mut group,
        "bf16",
        &x,
        &noise(inputs * outputs).into_iter().map(bf16::from_f32).collect::<Vec<_>>(),
    );
    head_of(&mut group, "f32", &x, &noise(inputs * outputs));
    group.finish();
}

type Group<'a> = criterion::BenchmarkGroup<'a, criterion::measurement::WallTime>;

fn head_of<W: Element>(group: &mut Group<'_>, name: &str, x: &[f32], w: &[W]) {
    let (inputs, outputs) = HEAD;
    let mut out = vec![0f32; outputs];
    group.throughput(Throughput::Bytes(size_of_val(w) as u64));
    group.bench_function(name, |b| {
        b.iter(|| -> Result {
            let (a, w) = (MatRef::new(x, 1, inputs)?, MatRef::new(w, outputs, inputs)?);
            dense::linear(Isa::detect(), a, w, None, MatMut::new(black_box(&mut out), 1, outputs)?)
        });
    });
}

fn quantise(c: &mut Criterion) {
    let (inputs, outputs) = SHAPES[2];
    let floats = noise(4 * inputs * outputs);
    let mut group = c.benchmark_group("quantise 5120×5120");
    quantise_from(&mut group, "f32", &floats);
    quantise_from(&mut group, "f16", &floats.iter().map(|&x| f16::from_f32(x)).collect::<Vec<_>>());
    quantise_from(&mut group, "bf16", &floats.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>());
    let [x, _] = activations(1, 24);
    group.throughput(Throughput::Elements(1280));
    group.bench_function("activations 1×1280", |b| {
        b.iter_batched(
            || MatRef::new(&x, 1, 1280),
            |a| a.map(|a| quantize_activations(Isa::detect(), a, 6.0, OutlierScope::Batch)),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn quantise_from<T: Element>(group: &mut Group<'_>, name: &str, w: &[T]) {
    let (mut codes, mut absmax) = (vec![0i8; w.len()], vec![0f32; 5120]);
    group.throughput(Throughput::Bytes(size_of_val(w) as u64));
    group.bench_function(format!("{name} rows"), |b| {
        b.iter(|| -> Result {
            let codes = MatMut::new(&mut codes, 5120, 5120)?;
            quantize_weight(Isa::detect(), MatRef::new(w, 5120, 5120)?, codes, &mut absmax)
        });
    });
    group.bench_function(format!("{name} transposed"), |b| {
        b.iter(|| -> Result {
            let codes = MatMut::new(&mut codes, 5120, 5120)?;
            quantize_weight_transposed(Isa::detect(), MatRef::new(w, 5120, 5120)?, codes, &mut absmax)
        });
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = decode, prefill, head, quantise
}
criterion_main!(benches);
