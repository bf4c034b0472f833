//! What a model would be, from the headers of its files.

use crate::options::Options;
use crate::parameter::{self, Parameter};
use crate::{html, load, runtime};
use llm_int8::nn::linear::ReplaceReport;
use llm_int8::nn::module::Node;
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// What loading a model would give, found out from `config.json` and the headers of its files.
#[pyclass(frozen, module = "llm_int8")]
pub(crate) struct ModelPlan(llm_int8::ModelPlan);

/// Describes a model; see `llm_int8.inspect`.
#[pyfunction]
#[pyo3(signature = (name, options, progress=None))]
pub(crate) fn describe_model(
    py: Python<'_>,
    name: String,
    options: Options,
    progress: Option<Bound<'_, PyAny>>,
) -> PyResult<ModelPlan> {
    runtime::start(py, options.num_threads)?;
    let config = options.config()?;
    Ok(ModelPlan(load::plan(py, name, config, progress.as_ref())?))
}

/// Parameters and memory, in one line.
pub(crate) fn footer(tree: &Node) -> String {
    let parameters = tree.named_parameters();
    let count: usize = parameters
        .iter()
        .map(|one| one.shape.iter().product::<usize>())
        .sum();
    let footprint = tree.footprint();
    format!(
        "{count} parameters; {} bytes by transformers' rule, {} held here",
        footprint.transformers(),
        footprint.actual()
    )
}

/// The paths of the int8 and of the float linear layers.
pub(crate) fn layers<'py>(py: Python<'py>, report: &ReplaceReport) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    let int8: Vec<String> = report.replaced.iter().map(ToString::to_string).collect();
    let float = report.kept.iter().map(|layer| layer.path.to_string());
    dict.set_item("int8", int8)?;
    dict.set_item("float", float.collect::<Vec<_>>())?;
    Ok(dict)
}

#[pymethods]
impl ModelPlan {
    fn __str__(&self) -> String {
        self.0.tree.to_string()
    }

    fn __repr__(&self) -> String {
        self.0.tree.to_string()
    }

    fn _repr_html_(&self) -> String {
        html::of_tree(&self.0.tree.to_string(), &footer(&self.0.tree))
    }

    /// Name, dtype and shape of every parameter, in PyTorch's order; the values are not loaded.
    fn named_parameters(&self) -> Vec<(String, Parameter)> {
        parameter::planned(self.0.tree.named_parameters())
    }

    /// Bytes of parameters and buffers, as transformers counts them.
    fn get_memory_footprint(&self) -> u64 {
        self.0.tree.footprint().transformers()
    }

    /// Bytes that the loaded model would hold.
    #[getter]
    fn nbytes(&self) -> u64 {
        self.0.tree.footprint().actual()
    }

    /// The paths of linear layers: {"int8": [...], "float": [...]}.
    #[getter]
    fn layers<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        layers(py, &self.0.layers)
    }

    /// What the model's weights ask for that this library would not do.
    #[getter]
    fn warnings(&self) -> Vec<String> {
        self.0.warnings.iter().map(ToString::to_string).collect()
    }

    /// The steps of a forward pass, one per line.
    #[getter]
    fn steps(&self) -> String {
        self.0.steps.to_string()
    }
}
