//! `llm-int8 logits`: write logits to compare with another implementation.

use super::load;
use crate::args::LogitsArgs;
use anyhow::Context;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

pub(crate) fn logits(args: &LogitsArgs) -> anyhow::Result<()> {
    let model = load(&args.model, &args.adapter)?;
    let logits = model.logits(&args.token_ids)?;
    let shape = logits.dims().to_vec();
    let values: Vec<u8> = logits
        .flatten_all()?
        .to_vec1::<f32>()?
        .into_iter()
        .flat_map(f32::to_le_bytes)
        .collect();
    let ids: Vec<u8> = args
        .token_ids
        .iter()
        .flat_map(|id| i64::from(*id).to_le_bytes())
        .collect();

    let tensors = [
        ("logits", TensorView::new(Dtype::F32, shape, &values)?),
        (
            "token_ids",
            TensorView::new(Dtype::I64, vec![1, args.token_ids.len()], &ids)?,
        ),
    ];
    let bytes = safetensors::serialize(tensors, None)?;
    llm_int8_files::write(&args.out, &bytes)
        .with_context(|| format!("cannot write {}", args.out.display()))
}
