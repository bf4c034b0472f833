//! The kernels at the sizes of gpt2-large: linear layers for one token (decode) and for a prompt
//! (prefill), attention, the activation function, the output head, and quantising a checkpoint.
//!
//! `cargo bench -p llm-int8-kernels` runs on every instruction set the CPU has. The peer is the
//! same matmul in f32 by the `gemm` crate, which candle uses. The roofline of memory and registers
//! is printed beside.

#![allow(
    clippy::print_stdout,
    reason = "prints the roofline beside the results"
)]

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use gemm::Parallelism;
use half::{bf16, f16};
use llm_int8_kernels as kernels;
use llm_int8_kernels::aligned::elements_before_line;
use llm_int8_kernels::pages::prefer_large;
use llm_int8_kernels::{
    Element, Int8WeightRef, Isa, KernelError, MatMut, MatRef, OutlierRule, QuantizedActivations,
    activation, attention, dense, limits, linear, quantize_activations, quantize_weight,
    quantize_weight_transposed,
};
use std::hint::black_box;
use std::time::Duration;

type Result = std::result::Result<(), KernelError>;

/// Linear layers of a gpt2-large block as (K, N).
const SHAPES: [(usize, usize); 4] = [(1280, 3840), (1280, 1280), (1280, 5120), (5120, 1280)];
/// Blocks of gpt2-large.
const BLOCKS: usize = 36;
/// The output head of gpt2-large as (K, N).
const HEAD: (usize, usize) = (1280, 50257);

/// A closure for `iter` that panics on an error.
fn checked(mut run: impl FnMut() -> Result) -> impl FnMut() {
    move || done(run())
}

/// Panics on an error: a failed run must not be timed.
fn done(result: Result) {
    assert!(result.is_ok(), "{result:?}");
}

/// Pseudorandom numbers in -1..1.
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

/// A layer whose codes lie in a model's memory, from `first` on.
struct Layer {
    inputs: usize,
    outputs: usize,
    first: usize,
    absmax: Vec<f32>,
}

/// Layers one after the other, with their codes in huge pages, as the loader allocates them.
struct Model {
    codes: Vec<i8>,
    layers: Vec<Layer>,
}

impl Model {
    fn new(shapes: impl Iterator<Item = (usize, usize)>) -> Self {
        let mut first = 64;
        let mut layers = Vec::new();
        for (inputs, outputs) in shapes {
            layers.push(Layer {
                inputs,
                outputs,
                first,
                absmax: vec![0.5; outputs],
            });

            first += inputs * outputs;
        }

        let mut codes = vec![0i8; first];
        prefer_large(&mut codes);
        let some = noise(1 << 20);
        codes
            .iter_mut()
            .zip(some.iter().cycle())
            .for_each(|(code, x)| *code = (x * 127.0) as i8);
        let offset = elements_before_line(&codes);
        layers
            .iter_mut()
            .for_each(|layer| layer.first = layer.first - 64 + offset);
        Self { codes, layers }
    }
}

impl Layer {
    fn forward(
        &self,
        isa: Isa,
        model: &Model,
        a: &QuantizedActivations,
        out: &mut [f32],
    ) -> Result {
        let codes = &model.codes[self.first..][..self.inputs * self.outputs];
        let w = Int8WeightRef::new(MatRef::new(codes, self.outputs, self.inputs)?, &self.absmax)?;
        let rows = a.rows();
        let out = MatMut::new(&mut out[..rows * self.outputs], rows, self.outputs)?;
        linear(isa, a, &kernels::Layer::new(w), out)
    }
}

/// Runs every layer, with its input from `x` (K = 1280 and K = 5120), quantised each time.
fn token(isa: Isa, model: &Model, x: &[Vec<f32>; 2], rows: usize, out: &mut [f32]) -> Result {
    for layer in &model.layers {
        let x = &x[usize::from(layer.inputs == 5120)][..rows * layer.inputs];
        let a = MatRef::new(x, rows, layer.inputs)?;
        let a = quantize_activations(isa, a, OutlierRule::batch(6.0));
        layer.forward(isa, model, &a, out)?;
    }

    Ok(())
}

/// Noise in which some columns are outliers, each in a quarter of the rows.
fn activations(rows: usize, columns: usize) -> [Vec<f32>; 2] {
    [1280, 5120].map(|inputs| {
        let mut x = noise(rows * inputs);
        for (m, row) in x.chunks_mut(inputs).enumerate() {
            (0..columns)
                .filter(|c| (c + m) % 4 == 0)
                .for_each(|c| row[c * 211 % inputs] = 9.0);
        }

        x
    })
}

/// All int8 layers of the model for a few rows.
fn decode(c: &mut Criterion) {
    let model = Model::new((0..BLOCKS).flat_map(|_| SHAPES));
    let x = activations(8, 24);
    let mut out = vec![0f32; 8 * 5120];
    let mut group = c.benchmark_group("all int8 layers of gpt2-large");
    group.throughput(Throughput::Bytes(model.codes.len() as u64));
    println!(
        "reading memory {:.1} GB/s",
        limits::read_rate(&[&model.codes]) / 1e9
    );
    for isa in Isa::available().into_iter().skip(1) {
        for rows in [1, 2, 4, 8] {
            group.bench_function(format!("{}/{rows} rows", isa.name()), |b| {
                // Inside the thread pool throughout, as the decoder runs.
                b.iter(|| {
                    rayon::scope(|_| done(token(isa, &model, &x, rows, black_box(&mut out))))
                });
            });
        }
    }

    group.finish();
}

/// The int8 layers of one block for many rows, and one of them in f32.
fn prefill(c: &mut Criterion) {
    // One block: its codes (20 MB) are evicted from L1 and L2 between uses, as a whole model's are.
    let model = Model::new(SHAPES.into_iter());
    let macs = model.codes.len();

    let mut group = c.benchmark_group("prefill one block of gpt2-large");
    for isa in Isa::available().into_iter().skip(1) {
        println!(
            "{}: {:.0} G multiply-adds/s in registers",
            isa.name(),
            limits::multiply_rate(isa) / 1e9
        );
        for (rows, columns) in [(16, 6), (128, 6), (512, 6), (128, 200)] {
            let x = activations(rows, columns);
            let mut out = vec![0f32; rows * 5120];
            group.throughput(Throughput::Elements((macs * rows) as u64));
            group.bench_function(
                format!("{}/{rows} rows, {columns} outlier columns", isa.name()),
                |b| {
                    b.iter(|| done(token(isa, &model, &x, rows, black_box(&mut out))));
                },
            );
        }
    }

    let (rows, (inputs, outputs)) = (128, SHAPES[2]);
    let x = noise(rows * inputs);
    let w = noise(inputs * outputs);
    let mut out = vec![0f32; rows * outputs];
    group.throughput(Throughput::Elements((inputs * outputs * rows) as u64));
    group.bench_function("peer: gemm crate, f32, 1280×5120/128", |b| {
        b.iter(|| peer(rows, inputs, outputs, &x, &w, black_box(&mut out)));
    });
    group.bench_function("dense f32, 1280×5120/128", |b| {
        b.iter(checked(|| {
            let a = MatRef::new(&x, rows, inputs)?;
            let w = MatRef::new(&w, outputs, inputs)?;
            dense::linear(
                Isa::detect(),
                a,
                w,
                None,
                MatMut::new(black_box(&mut out), rows, outputs)?,
            )
        }));
    });

    group.finish();
}

/// Attention of a gpt2-large layer: one token after 256 others, and 512 tokens at once.
fn attend(c: &mut Criterion) {
    let heads = 20;
    let size = 64;
    let positions = 512;
    let keys: Vec<f16> = noise(positions * size)
        .into_iter()
        .map(f16::from_f32)
        .collect();
    let query = noise(size);

    let mut group = c.benchmark_group("attention of a gpt2-large layer");
    for isa in Isa::available() {
        for (name, seen) in [("one token after 256", 256..257), ("512 tokens", 1..513)] {
            let multiply_adds: usize = seen.clone().map(|seen| 2 * seen * size).sum();
            group.throughput(Throughput::Elements((heads * multiply_adds) as u64));
            group.bench_function(format!("{}/{name}", isa.name()), |b| {
                let mut out = vec![0f32; seen.len() * size];
                let mut scratch = attention::Scratch::default();
                b.iter(|| {
                    for _ in 0..heads {
                        let cache = attention::HeadCache::new(&keys, &keys, size);
                        let mut queries: Vec<_> = seen
                            .clone()
                            .zip(out.chunks_mut(size))
                            .map(|(seen, out)| attention::Query {
                                query: &query,
                                seen: 0..seen,
                                head: 0,
                                out,
                            })
                            .collect();
                        attention::attend(isa, cache, &mut queries, |_, _, _| (), &mut scratch);
                    }
                });
            });
        }
    }

    group.finish();
}

/// The activation function of a gpt2-large MLP over 128 tokens.
fn activate(c: &mut Criterion) {
    let mut x = noise(128 * 5120);
    let mut group = c.benchmark_group("activation of 128×5120");
    group.throughput(Throughput::Elements(x.len() as u64));

    for isa in Isa::available() {
        group.bench_function(format!("{}/GELU", isa.name()), |b| {
            b.iter(|| activation::apply(isa, kernels::Activation::GeluTanh, black_box(&mut x)));
        });
    }

    group.finish();
}

/// `x · wᵀ` by the gemm crate.
#[expect(unsafe_code, reason = "the gemm crate takes pointers")]
fn peer(rows: usize, inputs: usize, outputs: usize, x: &[f32], w: &[f32], out: &mut [f32]) {
    assert!(x.len() == rows * inputs && w.len() == inputs * outputs && out.len() == rows * outputs);

    let k = inputs as isize;
    let n = outputs as isize;

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

/// The output head in floating point.
fn head(c: &mut Criterion) {
    let (inputs, outputs) = HEAD;
    let x = noise(inputs);
    let mut group = c.benchmark_group("output head of gpt2-large");
    head_of(
        &mut group,
        "f16",
        &x,
        &noise(inputs * outputs)
            .into_iter()
            .map(f16::from_f32)
            .collect::<Vec<_>>(),
    );

    head_of(
        &mut group,
        "bf16",
        &x,
        &noise(inputs * outputs)
            .into_iter()
            .map(bf16::from_f32)
            .collect::<Vec<_>>(),
    );

    head_of(&mut group, "f32", &x, &noise(inputs * outputs));
    group.finish();
}

/// The output head in int8, as with `--quantize-head`.
fn int8_head(c: &mut Criterion) {
    let model = Model::new(std::iter::once(HEAD));
    let [x, _] = activations(1, 24);
    let mut out = vec![0f32; HEAD.1];
    let mut group = c.benchmark_group("output head of gpt2-large in int8");
    group.throughput(Throughput::Bytes(model.codes.len() as u64));

    for isa in Isa::available().into_iter().skip(1) {
        group.bench_function(isa.name(), |b| {
            b.iter(checked(|| {
                let a =
                    quantize_activations(isa, MatRef::new(&x, 1, HEAD.0)?, OutlierRule::batch(6.0));

                model.layers[0].forward(isa, &model, &a, black_box(&mut out))
            }));
        });
    }

    group.finish();
}

type Group<'a> = criterion::BenchmarkGroup<'a, criterion::measurement::WallTime>;

fn head_of<W: Element>(group: &mut Group<'_>, name: &str, x: &[f32], w: &[W]) {
    let (inputs, outputs) = HEAD;
    let mut out = vec![0f32; outputs];
    group.throughput(Throughput::Bytes(size_of_val(w) as u64));
    group.bench_function(name, |b| {
        b.iter(checked(|| {
            let a = MatRef::new(x, 1, inputs)?;
            let w = MatRef::new(w, outputs, inputs)?;
            dense::linear(
                Isa::detect(),
                a,
                w,
                None,
                MatMut::new(black_box(&mut out), 1, outputs)?,
            )
        }));
    });
}

/// Quantising weights, as a checkpoint loads, and activations.
fn quantise(c: &mut Criterion) {
    let (inputs, outputs) = SHAPES[2];
    let floats = noise(4 * inputs * outputs);
    let mut group = c.benchmark_group("quantise 5120×5120");
    quantise_from(&mut group, "f32", &floats);
    quantise_from(
        &mut group,
        "f16",
        &floats.iter().map(|&x| f16::from_f32(x)).collect::<Vec<_>>(),
    );
    quantise_from(
        &mut group,
        "bf16",
        &floats
            .iter()
            .map(|&x| bf16::from_f32(x))
            .collect::<Vec<_>>(),
    );

    let [x, _] = activations(1, 24);
    group.throughput(Throughput::Elements(1280));
    group.bench_function("activations 1×1280", |b| {
        b.iter_batched(
            || MatRef::new(&x, 1, 1280),
            |a| a.map(|a| quantize_activations(Isa::detect(), a, OutlierRule::batch(6.0))),
            BatchSize::SmallInput,
        );
    });

    group.finish();
}

fn quantise_from<T: Element>(group: &mut Group<'_>, name: &str, w: &[T]) {
    let mut codes = vec![0i8; w.len()];
    let mut absmax = vec![0f32; 5120];
    group.throughput(Throughput::Bytes(size_of_val(w) as u64));
    group.bench_function(format!("{name} rows"), |b| {
        b.iter(checked(|| {
            let codes = MatMut::new(&mut codes, 5120, 5120)?;
            quantize_weight(
                Isa::detect(),
                MatRef::new(w, 5120, 5120)?,
                codes,
                &mut absmax,
            )
        }));
    });

    group.bench_function(format!("{name} transposed"), |b| {
        b.iter(checked(|| {
            let codes = MatMut::new(&mut codes, 5120, 5120)?;
            quantize_weight_transposed(
                Isa::detect(),
                MatRef::new(w, 5120, 5120)?,
                codes,
                &mut absmax,
            )
        }));
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = decode, prefill, attend, activate, head, int8_head, quantise
}
criterion_main!(benches);
