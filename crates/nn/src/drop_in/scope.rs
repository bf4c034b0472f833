//! Which layers that are built here and now become int8, and how they compute.

use crate::error::NnError;
use crate::linear::Int8Config;
use crate::module::{ModulePath, SkipList};
use crate::near_names::near_names;
use candle_core::Result;
use std::cell::RefCell;

/// A linear layer that [`with_int8_report`] built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuiltLinear {
    /// The prefix of its `VarBuilder`.
    pub path: ModulePath,
    /// `[out_features, in_features]`.
    pub shape: [usize; 2],
    /// Whether the weight is int8.
    pub is_int8: bool,
    /// Bytes of weight, absmax and bias.
    pub bytes: usize,
}

/// What [`with_int8`] says, and what was built under it.
#[derive(Debug)]
struct Scope {
    config: Int8Config,
    skip: SkipList,
    /// Paths of the linear layers so far that a name of `skip` may cover.
    skippable: Vec<ModulePath>,
    built: Vec<BuiltLinear>,
}

thread_local! {
    /// The scopes that the code of this thread is in, the innermost last.
    static SCOPES: RefCell<Vec<Scope>> = const { RefCell::new(Vec::new()) };
}

/// Removes the innermost scope, also where the building code panics.
struct Guard;

impl Drop for Guard {
    fn drop(&mut self) {
        SCOPES.with_borrow_mut(Vec::pop);
    }
}

/// Builds a model whose linear layers, made by the constructors of [`drop_in`](super) on this
/// thread, are int8 with `config`, except those that a name of `skip` covers. Names match as in
/// [`SkipList`], against the prefix of the layer's `VarBuilder`. `lm_head` always stays float, as
/// in transformers.
///
/// Outside of this function the constructors use [`Int8Config::default`] and skip `lm_head` alone.
///
/// # Errors
/// What `build` gives, and an error for a name of `skip` that covers no layer built.
pub fn with_int8<T>(
    config: Int8Config,
    skip: &SkipList,
    build: impl FnOnce() -> Result<T>,
) -> Result<T> {
    with_int8_report(config, skip, build).map(|(model, _)| model)
}

/// [`with_int8`], with the linear layers that were built in it, in the order of their building:
/// which became int8, and how large they are. Layers of an inner scope are not among them, nor are
/// those that [`Linear::new`](super::Linear::new) makes of tensors.
///
/// # Errors
/// As [`with_int8`].
pub fn with_int8_report<T>(
    config: Int8Config,
    skip: &SkipList,
    build: impl FnOnce() -> Result<T>,
) -> Result<(T, Vec<BuiltLinear>)> {
    SCOPES.with_borrow_mut(|scopes| {
        scopes.push(Scope {
            config,
            skip: skip.clone(),
            skippable: Vec::new(),
            built: Vec::new(),
        });
    });
    let guard = Guard;

    let model = build()?;

    let (skippable, built) = SCOPES
        .with_borrow_mut(|scopes| {
            let scope = scopes.last_mut()?;
            let skippable = std::mem::take(&mut scope.skippable);
            Some((skippable, std::mem::take(&mut scope.built)))
        })
        .unwrap_or_default();
    drop(guard);
    check_names(skip, &skippable)?;
    Ok((model, built))
}

/// Adds a layer to the report of the innermost scope.
pub(super) fn record(layer: BuiltLinear) {
    SCOPES.with_borrow_mut(|scopes| {
        if let Some(scope) = scopes.last_mut() {
            scope.built.push(layer);
        }
    });
}

/// Refuses names that cover none of the layers.
fn check_names(skip: &SkipList, built: &[ModulePath]) -> Result<()> {
    for name in skip.names() {
        let alone = SkipList::new([name.as_str()]);
        if !built.iter().any(|path| alone.matching(path).is_some()) {
            let candidates = built.iter().flat_map(|path| [path.name(), path.as_str()]);
            return Err(NnError::UnknownModule {
                name: name.clone(),
                hint: near_names(name, candidates),
            }
            .into_candle());
        }
    }
    Ok(())
}

/// The configuration of int8 layers built here.
pub(super) fn config() -> Int8Config {
    SCOPES.with_borrow(|scopes| {
        scopes
            .last()
            .map_or_else(Int8Config::default, |scope| scope.config)
    })
}

/// The configuration of the layer at a path, or none where it stays float.
pub(super) fn config_for(path: &ModulePath) -> Option<Int8Config> {
    let always = SkipList::new(["lm_head"]);
    SCOPES.with_borrow_mut(|scopes| {
        let Some(scope) = scopes.last_mut() else {
            return always.matching(path).is_none().then(Int8Config::default);
        };
        scope.skippable.push(path.clone());
        let is_kept = always.matching(path).is_some() || scope.skip.matching(path).is_some();
        (!is_kept).then_some(scope.config)
    })
}
