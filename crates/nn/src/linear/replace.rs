//! Replacing a model's float linear layers by int8 ones (transformers' `replace_with_bnb_linear`).

use super::{Int8Config, Int8Linear, Linear};
use crate::error::Result;
use crate::module::{Module, ModulePath, SkipList};

/// A model that gives access to its linear layers.
pub trait HasLinears: Module {
    /// Calls `visit` for every linear layer with its path, in the tree's order.
    ///
    /// # Errors
    /// The first error of `visit`.
    fn for_each_linear(
        &mut self,
        visit: &mut dyn FnMut(&ModulePath, &mut Linear) -> Result<()>,
    ) -> Result<()>;

    /// Modules that transformers never converts in this model: the output head and whatever is tied
    /// to it.
    fn default_skip_list(&self) -> SkipList;
}

/// Converts every float layer to int8, except those on the skip list: the user's names plus
/// [`HasLinears::default_skip_list`].
///
/// A layer with values is quantised. A declared one becomes a declared int8 layer.
///
/// # Errors
/// [`NnError::UnknownModule`](crate::NnError::UnknownModule) for a name that matches no module; the
/// errors of [`Int8Linear::quantize`].
pub fn replace_linear(
    model: &mut impl HasLinears,
    user: &SkipList,
    config: Int8Config,
) -> Result<ReplaceReport> {
    user.check(&model.describe())?;
    let skip = model.default_skip_list().with(user.names().iter().cloned());
    let mut report = ReplaceReport::default();
    model.for_each_linear(&mut |path, linear| {
        let Linear::Float(float) = &*linear else {
            return Ok(());
        };

        if let Some(name) = skip.matching(path) {
            report.kept.push(KeptLinear {
                path: path.clone(),
                because: name.to_owned(),
            });
            return Ok(());
        }

        let int8 = if float.weight().is_loaded() {
            Int8Linear::quantize(float, config)?
        } else {
            Int8Linear::declared(float, config)
        };

        *linear = Linear::Int8(int8);
        report.replaced.push(path.clone());

        Ok(())
    })?;

    Ok(report)
}

/// A linear layer that stayed float, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptLinear {
    /// Its path.
    pub path: ModulePath,
    /// The name on the skip list that matched it.
    pub because: String,
}

/// Which layers were converted and which were not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplaceReport {
    /// Layers that are int8 now.
    pub replaced: Vec<ModulePath>,
    /// Layers that stayed float.
    pub kept: Vec<KeptLinear>,
}
