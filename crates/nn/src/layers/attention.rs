//! Causal attention over a key/value cache.

use crate::error::Result;
use candle_core::{D, Device, Tensor};
use candle_nn::kv_cache::KvCache;

/// Keys and values of one layer, f32 `[B, H, positions so far, D]`.
#[derive(Debug, Clone)]
pub struct LayerCache {
    inner: KvCache,
}

/// Positions allocated at once: a conversation grows the cache a few times, not at every token.
const GROW_BY: usize = 256;

impl LayerCache {
    /// An empty cache.
    pub fn new() -> Self {
        Self { inner: KvCache::new(2, GROW_BY) }
    }

    /// Bytes allocated for keys and values.
    pub fn bytes(&self) -> u64 {
        let bytes =
            |data: &Option<Tensor>| data.as_ref().map_or(0, |t| t.elem_count() * t.dtype().size_in_bytes());
        (bytes(self.inner.k_cache().all_data()) + bytes(self.inner.v_cache().all_data())) as u64
    }
}

impl Default for LayerCache {
    fn default() -> Self {
        Self::new()
    }
}

/// `softmax(q·kᵀ·factor + mask)·v` over everything cached and the new keys and values, which are
/// added to the cache.
///
/// # Shapes
/// `q`, `k`, `v` f32 `[B, H, T, D]` of the new positions; `mask` `[T, positions]` or none for T = 1;
/// the result `[B, T, H·D]`.
///
/// # Errors
/// [`NnError::Candle`](crate::NnError::Candle) where shapes do not fit.
pub fn attend(
    [q, k, v]: [&Tensor; 3],
    factor: f64,
    mask: Option<&Tensor>,
    cache: &mut LayerCache,
) -> Result<Tensor> {
    let (batch, heads, tokens, head_size) = q.dims4()?;
    let (k, v) = cache.inner.append(&k.contiguous()?, &v.contiguous()?)?;
    let scores = (q.contiguous()?.matmul(&k.transpose(D::Minus1, D::Minus2)?)? * factor)?;
    let scores = match mask {
        Some(mask) => scores.broadcast_add(mask)?,
        None => scores,
    };
    let weights = candle_nn::ops::softmax_last_dim(&scores)?;
    let mixed = weights.matmul(&v)?;
    Ok(mixed.transpose(1, 2)?.reshape((batch, tokens, heads * head_size))?)
}

/// 0 where a new position may look and -∞ where it may not: f32 `[T, cached + T]`; none for T = 1,
/// which may look everywhere.
///
/// # Errors
/// [`NnError::Candle`](crate::NnError::Candle) where the tensor cannot be made.
pub fn causal_mask(tokens: usize, cached: usize) -> Result<Option<Tensor>> {
    if tokens <= 1 {
        return Ok(None);
    }
    let positions = cached + tokens;
    let mask: Vec<f32> = (0..tokens)
        .flat_map(|row| {
            (0..positions).map(move |column| if column > cached + row { f32::NEG_INFINITY } else { 0.0 })
        })
        .collect();
    Ok(Some(Tensor::from_vec(mask, (tokens, positions), &Device::Cpu)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(tokens: usize, seed: u32) -> Tensor {
        let values: Vec<f32> = (0..2 * tokens * 3).map(|i| ((i as f32 + seed as f32) * 1.7).sin()).collect();
        Tensor::from_vec(values, (1, 2, tokens, 3), &Device::Cpu).unwrap()
    }

    #[test]
    fn one_by_one_gives_what_all_at_once_gives() {
        let (q, k, v) = (random(5, 0), random(5, 7), random(5, 19));
        let mask = causal_mask(5, 0).unwrap();
        let whole = attend([&q, &k, &v], 0.5, mask.as_ref(), &mut LayerCache::new()).unwrap();
        let mut cache = LayerCache::new();
        for t in 0..5 {
            let [q, k, v] = [&q, &k, &v].map(|x| x.narrow(2, t, 1).unwrap());
            let one = attend([&q, &k, &v], 0.5, None, &mut cache).unwrap();
            let difference =
                (one - whole.narrow(1, t, 1).unwrap()).unwrap().abs().unwrap().max_all().unwrap();
            assert!(difference.to_scalar::<f32>().unwrap() < 1e-6);
        }
    }
}
