//! Turning a model's float layers into int8 ones (`replace_with_bnb_linear` of transformers).

use super::{Int8Config, Int8Linear, Linear};
use crate::error::Result;
use crate::module::{Module, ModulePath, SkipList};

/// A model whose linear layers can be reached.
pub trait HasLinears: Module {
    /// Calls `visit` for every linear layer with its path, in the tree's order.
    ///
    /// # Errors
    /// The first error of `visit`.
    fn for_each_linear(
        &mut self,
        visit: &mut dyn FnMut(&ModulePath, &mut Linear) -> Result<()>,
    ) -> Result<()>;

    /// Modules that transformers never converts in this model: the output head and what is tied to
    /// it.
    fn default_skip_list(&self) -> SkipList;
}

/// Makes every float layer int8 that no name of the skip list covers. The user's names are added
/// to [`HasLinears::default_skip_list`]; they do not replace it.
///
/// A layer with values is quantised; one that is only declared becomes a declared int8 layer.
///
/// # Errors
/// [`NnError::UnknownModule`](crate::NnError::UnknownModule) for a name that matches nothing;
/// what [`Int8Linear::quantize`] gives.
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

/// A linear layer that was kept, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptLinear {
    /// Its path.
    pub path: ModulePath,
    /// The name of the skip list that covers it.
    pub because: String,
}

/// What replacing did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplaceReport {
    /// Layers that are int8 now.
    pub replaced: Vec<ModulePath>,
    /// Layers that were kept.
    pub kept: Vec<KeptLinear>,
}
