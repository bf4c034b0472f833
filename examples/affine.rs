//! INT8 affine quantisation as PyTorch does it: observe a range, quantise, look at what was lost.
//!
//! `cargo run --release --example affine`

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use llm_int8_affine::{
    MinMaxObserver, Observer, QScheme, QuantizedDtype, QuantizedTensor, TensorRef,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let values = [3.0f32, -5.5, 0.0, 4.0, -6.0, 2.5];
    let x = TensorRef::new(&values, &[6])?;

    for scheme in [QScheme::PerTensorAffine, QScheme::PerTensorSymmetric] {
        let mut observer = MinMaxObserver::new(QuantizedDtype::Qint8, scheme)?;
        observer.observe(x)?;
        let quantized = QuantizedTensor::quantize(x, QuantizedDtype::Qint8, &observer.qparams()?)?;

        println!("{scheme:?}: codes {:?}", quantized.int_repr());
        println!("  recovered {:?}", quantized.dequantize());
        println!("  {:?}", quantized.errors(x));
    }
    Ok(())
}
