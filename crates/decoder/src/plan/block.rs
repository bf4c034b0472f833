//! Builds the steps of one block: attention and MLP, and how they are added to the residual stream.

use super::build::{Builder, Input, refuse};
use super::*;
use crate::error::Result;
use crate::slot::Slot;
use crate::spec::{LayerSpec, Residual};
use llm_int8_kernels::Activation as Kernel;

impl Builder<'_> {
    pub(super) fn block(&mut self, layer: &LayerSpec) -> Result<Vec<Step<BlockSlot>>> {
        let mut steps = Vec::new();
        match self.spec.residual {
            Residual::Sequential => self.sequential(&mut steps, layer)?,
            Residual::Parallel => self.parallel(&mut steps, layer)?,
            Residual::NormAfter => self.norm_after(&mut steps, layer)?,
        }

        let missing = steps
            .iter()
            .filter_map(Step::norm)
            .find(|slot| !self.has(*slot));
        match missing {
            Some(slot) => refuse(format!("there is no norm {slot:?}")),
            None => Ok(steps),
        }
    }

    /// [`Residual::Sequential`].
    fn sequential(&mut self, steps: &mut Vec<Step<BlockSlot>>, layer: &LayerSpec) -> Result<()> {
        let input = self.normed_stream(BlockSlot::AttentionNorm);
        self.attention(steps, input, layer)?;
        self.add_attention(steps)?;

        let input = self.normed_stream(BlockSlot::MlpNorm);
        self.mlp(steps, input)
    }

    /// [`Residual::Parallel`]. Attention waits in [`Rows::Attended`] until the MLP has read the
    /// stream.
    fn parallel(&mut self, steps: &mut Vec<Step<BlockSlot>>, layer: &LayerSpec) -> Result<()> {
        use BlockSlot::{AttentionNorm, AttentionOut, AttentionPostNorm, MlpNorm};

        let input = self.normed_stream(AttentionNorm);
        self.attention(steps, input, layer)?;
        let heads = Input::plain(Rows::Heads);
        let out = self.linear(block, heads, &[AttentionOut], Rows::Attended)?;
        steps.push(Step::Linear(out));
        if self.has(AttentionPostNorm) {
            steps.push(Step::Norm(NormStep {
                norm: AttentionPostNorm,
                rows: Rows::Attended,
            }));
        }

        // Without a norm of its own, the MLP has the same input as attention.
        let norm = if self.has(MlpNorm) {
            MlpNorm
        } else {
            AttentionNorm
        };
        let input = self.normed_stream(norm);
        let hidden = self.mlp_hidden(steps, input)?;
        steps.push(Step::Add(Add {
            from: Rows::Attended,
            scale: self.spec.residual_scale,
        }));
        self.add_mlp(steps, hidden)
    }

    /// [`Residual::NormAfter`].
    fn norm_after(&mut self, steps: &mut Vec<Step<BlockSlot>>, layer: &LayerSpec) -> Result<()> {
        if self.has(BlockSlot::AttentionPostNorm) || self.has(BlockSlot::MlpPostNorm) {
            return refuse("norms after the residual and norms of what joins it");
        }

        self.attention(steps, Input::plain(Rows::Stream), layer)?;
        self.add_attention(steps)?;
        steps.push(Step::Norm(NormStep {
            norm: BlockSlot::AttentionNorm,
            rows: Rows::Stream,
        }));

        self.mlp(steps, Input::plain(Rows::Stream))?;
        steps.push(Step::Norm(NormStep {
            norm: BlockSlot::MlpNorm,
            rows: Rows::Stream,
        }));
        Ok(())
    }

    /// Attention's output projection, added to the stream.
    fn add_attention(&mut self, steps: &mut Vec<Step<BlockSlot>>) -> Result<()> {
        let heads = Input::plain(Rows::Heads);
        self.add_to_stream(
            steps,
            heads,
            BlockSlot::AttentionOut,
            BlockSlot::AttentionPostNorm,
        )
    }

    /// The MLP's second layer, added to the stream.
    fn add_mlp(
        &mut self,
        steps: &mut Vec<Step<BlockSlot>>,
        hidden: Input<BlockSlot>,
    ) -> Result<()> {
        self.add_to_stream(steps, hidden, BlockSlot::Down, BlockSlot::MlpPostNorm)
    }

    /// A linear layer whose output is added to the stream, through the norm `post` if there is one.
    fn add_to_stream(
        &mut self,
        steps: &mut Vec<Step<BlockSlot>>,
        input: Input<BlockSlot>,
        slot: BlockSlot,
        post: BlockSlot,
    ) -> Result<()> {
        let scale = self.spec.residual_scale;
        if !self.has(post) {
            let step = self.linear(block, input, &[slot], Rows::Stream)?;
            steps.push(Step::Linear(LinearStep {
                adds: Some(scale),
                ..step
            }));
            return Ok(());
        }

        let step = self.linear(block, input, &[slot], Rows::Branch)?;
        steps.push(Step::Linear(step));
        steps.push(Step::Norm(NormStep {
            norm: post,
            rows: Rows::Branch,
        }));
        steps.push(Step::Add(Add {
            from: Rows::Branch,
            scale,
        }));
        Ok(())
    }

    /// Queries, keys and values, and attention: from `input` to [`Rows::Heads`].
    fn attention(
        &mut self,
        steps: &mut Vec<Step<BlockSlot>>,
        input: Input<BlockSlot>,
        layer: &LayerSpec,
    ) -> Result<()> {
        use BlockSlot::{Key, KeyNorm, Qkv, Query, QueryNorm, Value};
        let attention = &self.spec.attention;
        let norms: Vec<(BlockSlot, usize)> = [(QueryNorm, 0), (KeyNorm, 1)]
            .into_iter()
            .filter(|(norm, _)| self.has(*norm))
            .collect();

        let is_fused = self.has(Qkv);
        if is_fused && [Query, Key, Value].into_iter().any(|slot| self.has(slot)) {
            return refuse("queries, keys and values both in one layer and in layers of their own");
        }
        if is_fused && !norms.is_empty() {
            return refuse("norms of queries or keys that come from one layer with the values");
        }
        if attention.qkv_clamp.is_some() && !norms.is_empty() {
            return refuse("queries or keys that are both clamped and normalised");
        }

        let step = self.qkv(input, is_fused)?;
        let layers = step.layers.clone();
        steps.push(Step::Linear(step));
        for (norm, layer) in norms {
            steps.push(Step::HeadNorm(HeadNorm {
                norm,
                rows: Rows::Qkv,
                layer,
                of: layers[layer],
            }));
        }

        self.writes(Rows::Heads, attention.heads * attention.head_size)?;
        steps.push(Step::Attend(Attend {
            heads: attention.heads,
            kv_heads: attention.kv_heads,
            head_size: attention.head_size,
            layout: if is_fused {
                attention.layout
            } else {
                QkvLayout::Blocks
            },
            clamp: attention.qkv_clamp,
            rope: layer.rope,
            scale: layer.factor,
            window: layer.window,
            softcap: attention.softcap,
            alibi: attention.alibi.is_some(),
        }));
        Ok(())
    }

    /// The layers of queries, keys and values: one for all, or three.
    fn qkv(&mut self, input: Input<BlockSlot>, is_fused: bool) -> Result<LinearStep<BlockSlot>> {
        let attention = &self.spec.attention;
        let slots: &[BlockSlot] = if is_fused {
            &[BlockSlot::Qkv]
        } else {
            &[BlockSlot::Query, BlockSlot::Key, BlockSlot::Value]
        };
        let step = self.linear(block, input, slots, Rows::Qkv)?;

        let queries = attention.heads * attention.head_size;
        let keys = attention.kv_heads * attention.head_size;
        let expected = if is_fused {
            vec![queries + 2 * keys]
        } else {
            vec![queries, keys, keys]
        };
        let found = step.layers.iter().map(|layer| layer.out_features);
        if found.ne(expected) {
            return refuse(format!(
                "{} heads and {} of keys and values of {} values each, and layers of other widths",
                attention.heads, attention.kv_heads, attention.head_size
            ));
        }
        Ok(step)
    }

    /// The whole MLP, added to the stream.
    fn mlp(&mut self, steps: &mut Vec<Step<BlockSlot>>, input: Input<BlockSlot>) -> Result<()> {
        let hidden = self.mlp_hidden(steps, input)?;
        self.add_mlp(steps, hidden)
    }

    /// The first layers of the MLP. Returns the input of the second.
    fn mlp_hidden(
        &mut self,
        steps: &mut Vec<Step<BlockSlot>>,
        input: Input<BlockSlot>,
    ) -> Result<Input<BlockSlot>> {
        use BlockSlot::{Gate, GateUp, Up};
        let is_fused = self.has(GateUp);
        if is_fused && (self.has(Gate) || self.has(Up)) {
            return refuse("gate and up both in one layer and in layers of their own");
        }

        let (slots, is_gated): (&[BlockSlot], bool) = match (is_fused, self.has(Gate)) {
            (true, _) => (&[GateUp], true),
            (false, true) => (&[Gate, Up], true),
            (false, false) => (&[Up], false),
        };
        let mut step = self.linear(block, input, slots, Rows::Mlp)?;

        let width: usize = step.layers.iter().map(|layer| layer.out_features).sum();
        let function = self.spec.activation;
        let outputs = if is_gated { width / 2 } else { width };
        step.activation =
            (function.kernel() != Kernel::Linear).then_some(Activated { function, outputs });
        steps.push(Step::Linear(step));

        let through = if is_gated {
            Through::Gate
        } else {
            Through::Plain
        };
        Ok(Input {
            rows: Rows::Mlp,
            through,
        })
    }
}

/// A slot of every block, as of block 0.
fn block(slot: BlockSlot) -> Slot {
    Slot::Block(0, slot)
}
