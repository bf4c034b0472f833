//! From a description to a plan.

use super::*;
use crate::error::{DecoderError, Result};
use crate::slot::Slot;
use crate::spec::{DecoderSpec, LayerSpec, Residual};
use crate::template::PartSpec;
use llm_int8_kernels::Activation as Kernel;

impl Plan {
    /// The plan of a decoder.
    ///
    /// # Errors
    /// [`DecoderError::Config`] for a combination of parts that no executor can compute, by its
    /// name.
    pub fn of(spec: &DecoderSpec) -> Result<Self> {
        let mut builder = Builder::new(spec);
        let embed = builder.embed()?;
        let blocks = spec
            .layers
            .iter()
            .map(|layer| builder.block(layer))
            .collect::<Result<_>>()?;
        let head = builder.head()?;

        let (mut model_paths, mut block_paths) = (Vec::new(), Vec::new());
        for (path, slot) in spec.tree.paths(1) {
            match slot {
                Slot::Model(slot) => model_paths.push((slot, path)),
                Slot::Block(_, slot) => block_paths.push((slot, path)),
            }
        }
        Ok(Self {
            embed,
            blocks,
            head,
            widths: builder.widths,
            model_paths,
            block_paths,
        })
    }
}

/// A plan while it is made.
struct Builder<'a> {
    spec: &'a DecoderSpec,
    parts: Vec<(Slot, &'a PartSpec)>,
    widths: BTreeMap<Rows, usize>,
}

fn refuse<T>(what: impl Into<String>) -> Result<T> {
    Err(DecoderError::Config {
        reason: format!("this combination is not supported: {}", what.into()),
    })
}

impl<'a> Builder<'a> {
    fn new(spec: &'a DecoderSpec) -> Self {
        let widths = BTreeMap::from([(Rows::Stream, spec.hidden_size)]);
        Self {
            spec,
            parts: spec.tree.slots().collect(),
            widths,
        }
    }

    fn part(&self, slot: Slot) -> Option<&'a PartSpec> {
        self.parts
            .iter()
            .find(|(found, _)| *found == slot)
            .map(|(_, part)| *part)
    }

    fn has(&self, slot: BlockSlot) -> bool {
        self.part(Slot::Block(0, slot)).is_some()
    }

    fn has_head(&self, slot: ModelSlot) -> bool {
        self.part(Slot::Model(slot)).is_some()
    }

    /// Through the norm of a slot, if there is one.
    fn through(&self, slot: BlockSlot) -> Through<BlockSlot> {
        if self.has(slot) {
            Through::Norm(slot)
        } else {
            Through::Plain
        }
    }

    /// A step writes rows of this width; every block must agree.
    fn writes(&mut self, rows: Rows, width: usize) -> Result<()> {
        match *self.widths.entry(rows).or_insert(width) {
            known if known == width => Ok(()),
            known => refuse(format!(
                "rows of {known} and of {width} values for the same purpose ({rows:?})"
            )),
        }
    }

    /// Layers side by side, from `input` to `into`.
    fn linear<S: PartSlot>(
        &mut self,
        place: impl Fn(S) -> Slot,
        (input, through): (Rows, Through<S>),
        slots: &[S],
        into: Rows,
    ) -> Result<LinearStep<S>> {
        let mut layers: Vec<Layer<S>> = Vec::new();
        let (mut width, mut inputs) = (0, None);
        for slot in slots {
            let Some(PartSpec::Linear {
                out_features,
                in_features,
                ..
            }) = self.part(place(*slot))
            else {
                return refuse(format!("there is no linear layer {slot:?}"));
            };
            if inputs.is_some_and(|known| known != *in_features) {
                return refuse(format!(
                    "layers with the same input, but {slot:?} takes {in_features} values"
                ));
            }
            inputs = Some(*in_features);
            layers.push(Layer {
                slot: *slot,
                offset: width,
                out_features: *out_features,
            });
            width += out_features;
        }
        let in_features = inputs.unwrap_or(0);
        let there = self.widths.get(&input).copied().unwrap_or(0);
        let expected = if through == Through::Gate {
            2 * in_features
        } else {
            in_features
        };
        if there != expected {
            return refuse(format!(
                "{slots:?} take {in_features} values; there are {there} ({input:?})"
            ));
        }
        self.writes(into, width)?;
        Ok(LinearStep {
            input,
            through,
            in_features,
            layers,
            activation: None,
            into,
            adds: None,
        })
    }

    fn model_linear(
        &mut self,
        input: (Rows, Through<ModelSlot>),
        slot: ModelSlot,
        into: Rows,
    ) -> Result<Step<ModelSlot>> {
        self.linear(Slot::Model, input, &[slot], into)
            .map(Step::Linear)
    }

    fn table(&self, slot: ModelSlot) -> Result<usize> {
        match self.part(Slot::Model(slot)) {
            Some(PartSpec::Embedding { width, .. }) => Ok(*width),
            _ => refuse(format!("there is no table {slot:?}")),
        }
    }

    fn embed(&mut self) -> Result<Vec<Step<ModelSlot>>> {
        let spec = self.spec;
        let positions = self
            .has_head(ModelSlot::Positions)
            .then_some(ModelSlot::Positions);
        let offset = spec.position_offset;
        let tokens = |into, positions| Embed {
            table: ModelSlot::Tokens,
            index: Index::Token,
            scale: spec.embedding_scale,
            positions,
            offset,
            into,
        };

        let mut steps = Vec::new();
        if self.has_head(ModelSlot::ProjectIn) {
            let width = self.table(ModelSlot::Tokens)?;
            self.writes(Rows::Embedded, width)?;
            steps.push(Step::Embed(tokens(Rows::Embedded, None)));
            let input = (Rows::Embedded, Through::Plain);
            steps.push(self.model_linear(input, ModelSlot::ProjectIn, Rows::Stream)?);
            if let Some(table) = positions {
                let width = self.table(table)?;
                self.writes(Rows::Branch, width)?;
                steps.push(Step::Embed(Embed {
                    table,
                    index: Index::Position,
                    scale: 1.0,
                    positions: None,
                    offset,
                    into: Rows::Branch,
                }));
                steps.push(Step::Add(Add {
                    from: Rows::Branch,
                    scale: 1.0,
                }));
            }
        } else {
            for slot in [ModelSlot::Tokens].into_iter().chain(positions) {
                let width = self.table(slot)?;
                self.writes(Rows::Stream, width)?;
            }
            steps.push(Step::Embed(tokens(Rows::Stream, positions)));
        }
        if self.has_head(ModelSlot::EmbeddingNorm) {
            steps.push(Step::Norm(NormStep {
                norm: ModelSlot::EmbeddingNorm,
                rows: Rows::Stream,
            }));
        }
        Ok(steps)
    }

    fn head(&mut self) -> Result<Vec<Step<ModelSlot>>> {
        let spec = self.spec;
        let through = match self.has_head(ModelSlot::FinalNorm) {
            true => Through::Norm(ModelSlot::FinalNorm),
            false => Through::Plain,
        };
        let (mut steps, mut input) = (Vec::new(), (Rows::Stream, through));
        if self.has_head(ModelSlot::ProjectOut) {
            steps.push(self.model_linear(input, ModelSlot::ProjectOut, Rows::Projected)?);
            input = (Rows::Projected, Through::Plain);
        }
        steps.push(self.model_linear(input, ModelSlot::Head, Rows::Logits)?);
        if spec.logit_scale != 1.0 || spec.logit_softcap.is_some() {
            steps.push(Step::Logits(LogitsStep {
                scale: spec.logit_scale,
                softcap: spec.logit_softcap,
            }));
        }
        Ok(steps)
    }

    fn block(&mut self, layer: &LayerSpec) -> Result<Vec<Step<BlockSlot>>> {
        use BlockSlot::{
            AttentionNorm, AttentionOut, AttentionPostNorm, Down, MlpNorm, MlpPostNorm,
        };
        let (mut steps, scale) = (Vec::new(), self.spec.residual_scale);
        match self.spec.residual {
            Residual::Sequential => {
                let input = (Rows::Stream, self.through(AttentionNorm));
                self.attention(&mut steps, input, layer)?;
                self.join(
                    &mut steps,
                    (Rows::Heads, Through::Plain),
                    AttentionOut,
                    AttentionPostNorm,
                )?;
                let input = (Rows::Stream, self.through(MlpNorm));
                let raised = self.mlp(&mut steps, input)?;
                self.join(&mut steps, raised, Down, MlpPostNorm)?;
            }
            Residual::Parallel => {
                let input = (Rows::Stream, self.through(AttentionNorm));
                self.attention(&mut steps, input, layer)?;
                let out = (Rows::Heads, Through::Plain);
                let out = self.linear(block, out, &[AttentionOut], Rows::Attended)?;
                steps.push(Step::Linear(out));
                if self.has(AttentionPostNorm) {
                    steps.push(Step::Norm(NormStep {
                        norm: AttentionPostNorm,
                        rows: Rows::Attended,
                    }));
                }
                // Without a norm of its own the MLP reads what attention read.
                let norm = if self.has(MlpNorm) {
                    MlpNorm
                } else {
                    AttentionNorm
                };
                let input = (Rows::Stream, self.through(norm));
                let raised = self.mlp(&mut steps, input)?;
                steps.push(Step::Add(Add {
                    from: Rows::Attended,
                    scale,
                }));
                self.join(&mut steps, raised, Down, MlpPostNorm)?;
            }
            Residual::NormAfter => {
                if self.has(AttentionPostNorm) || self.has(MlpPostNorm) {
                    return refuse("norms after the residual and norms of what joins it");
                }
                self.attention(&mut steps, (Rows::Stream, Through::Plain), layer)?;
                self.join(
                    &mut steps,
                    (Rows::Heads, Through::Plain),
                    AttentionOut,
                    AttentionPostNorm,
                )?;
                steps.push(Step::Norm(NormStep {
                    norm: AttentionNorm,
                    rows: Rows::Stream,
                }));
                let raised = self.mlp(&mut steps, (Rows::Stream, Through::Plain))?;
                self.join(&mut steps, raised, Down, MlpPostNorm)?;
                steps.push(Step::Norm(NormStep {
                    norm: MlpNorm,
                    rows: Rows::Stream,
                }));
            }
        }
        let missing = steps
            .iter()
            .filter_map(Step::norm)
            .find(|slot| !self.has(*slot));
        missing.map_or(Ok(steps), |slot| {
            refuse(format!("there is no norm {slot:?}"))
        })
    }

    /// A layer whose output joins the stream, through a norm if there is one.
    fn join(
        &mut self,
        steps: &mut Vec<Step<BlockSlot>>,
        input: (Rows, Through<BlockSlot>),
        slot: BlockSlot,
        post: BlockSlot,
    ) -> Result<()> {
        let scale = self.spec.residual_scale;
        if self.has(post) {
            steps.push(Step::Linear(self.linear(
                block,
                input,
                &[slot],
                Rows::Branch,
            )?));
            steps.push(Step::Norm(NormStep {
                norm: post,
                rows: Rows::Branch,
            }));
            steps.push(Step::Add(Add {
                from: Rows::Branch,
                scale,
            }));
        } else {
            let step = self.linear(block, input, &[slot], Rows::Stream)?;
            steps.push(Step::Linear(LinearStep {
                adds: Some(scale),
                ..step
            }));
        }
        Ok(())
    }

    /// From the input to [`Rows::Heads`].
    fn attention(
        &mut self,
        steps: &mut Vec<Step<BlockSlot>>,
        input: (Rows, Through<BlockSlot>),
        layer: &LayerSpec,
    ) -> Result<()> {
        use BlockSlot::{Key, KeyNorm, Qkv, Query, QueryNorm, Value};
        let attention = &self.spec.attention;
        let norms = [(QueryNorm, 0), (KeyNorm, 1)]
            .into_iter()
            .filter(|(norm, _)| self.has(*norm));
        let norms: Vec<(BlockSlot, usize)> = norms.collect();
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

        let slots: &[BlockSlot] = if is_fused {
            &[Qkv]
        } else {
            &[Query, Key, Value]
        };
        let step = self.linear(block, input, slots, Rows::Qkv)?;
        let [queries, keys] =
            [attention.heads, attention.kv_heads].map(|heads| heads * attention.head_size);
        let expected = if is_fused {
            vec![queries + 2 * keys]
        } else {
            vec![queries, keys, keys]
        };
        if step
            .layers
            .iter()
            .map(|layer| layer.out_features)
            .ne(expected)
        {
            return refuse(format!(
                "{} heads and {} of keys and values of {} values each, and layers of other widths",
                attention.heads, attention.kv_heads, attention.head_size
            ));
        }
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
        self.writes(Rows::Heads, queries)?;
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

    /// The first layers of the MLP; returns what the second reads.
    fn mlp(
        &mut self,
        steps: &mut Vec<Step<BlockSlot>>,
        input: (Rows, Through<BlockSlot>),
    ) -> Result<(Rows, Through<BlockSlot>)> {
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
        Ok((
            Rows::Mlp,
            if is_gated {
                Through::Gate
            } else {
                Through::Plain
            },
        ))
    }
}

/// The slot of a part of every block.
fn block(slot: BlockSlot) -> Slot {
    Slot::Block(0, slot)
}
