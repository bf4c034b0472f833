//! The native half of the Python package `llm_int8`: thin classes over the libraries. What is Python's
//! alone (words of transformers, torch tensors, progress bars, Ray) lies in `python/llm_int8`.
//!
//! Every call that computes releases the interpreter, looks for signals while it runs, and refuses to
//! run in a forked child of a process whose threads have started.

mod affine;
mod arrays;
mod batch;
mod error;
mod generated;
mod generation;
mod html;
mod linear;
mod load;
mod model;
mod options;
mod parameter;
mod plan;
mod runtime;
mod server;
mod stream;
mod tokenizer;
mod view;

use pyo3::prelude::*;

/// `llm_int8._native`.
#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<model::Model>()?;
    module.add_class::<plan::ModelPlan>()?;
    module.add_class::<parameter::Parameter>()?;
    module.add_class::<generated::Generated>()?;
    module.add_class::<stream::Stream>()?;
    module.add_class::<tokenizer::Tokenizer>()?;
    module.add_class::<linear::Int8Linear>()?;
    module.add_class::<affine::Observer>()?;
    module.add_class::<affine::QuantizedTensor>()?;
    module.add_class::<server::Server>()?;
    module.add_function(wrap_pyfunction!(model::load_model, module)?)?;
    module.add_function(wrap_pyfunction!(plan::describe_model, module)?)?;
    module.add_function(wrap_pyfunction!(linear::quantize_rowwise, module)?)?;
    module.add_function(wrap_pyfunction!(affine::quantize_per_tensor, module)?)?;
    module.add_function(wrap_pyfunction!(affine::quantize_per_channel, module)?)?;
    module.add_function(wrap_pyfunction!(affine::textbook, module)?)?;
    module.add_function(wrap_pyfunction!(server::serve, module)?)?;
    module.add_function(wrap_pyfunction!(runtime::set_num_threads, module)?)?;
    module.add_function(wrap_pyfunction!(runtime::get_num_threads, module)?)?;
    Ok(())
}
