//! Builds the plan of a decoder from its description.

use super::*;
use crate::error::{DecoderError, Result};
use crate::slot::Slot;
use crate::spec::DecoderSpec;
use crate::template::PartSpec;

impl Plan {
    /// The plan of a decoder.
    ///
    /// # Errors
    /// [`DecoderError::Config`] for a combination of parts that no executor can compute; the
    /// message names it.
    pub fn of(spec: &DecoderSpec) -> Result<Self> {
        let mut builder = Builder::new(spec);
        let embed = builder.embed()?;
        let blocks = spec
            .layers
            .iter()
            .map(|layer| builder.block(layer))
            .collect::<Result<_>>()?;
        let head = builder.head()?;

        let mut model_paths = Vec::new();
        let mut block_paths = Vec::new();
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

/// A plan being built.
pub(super) struct Builder<'a> {
    pub(super) spec: &'a DecoderSpec,
    parts: Vec<(Slot, &'a PartSpec)>,
    /// Widths of the rows that steps so far write.
    widths: BTreeMap<Rows, usize>,
}

/// Where linear layers take their input from: rows, and what those go through first.
#[derive(Debug, Clone, Copy)]
pub(super) struct Input<S> {
    pub(super) rows: Rows,
    pub(super) through: Through<S>,
}

impl<S> Input<S> {
    /// Rows as they are.
    pub(super) fn plain(rows: Rows) -> Self {
        Self {
            rows,
            through: Through::Plain,
        }
    }
}

pub(super) fn refuse<T>(what: impl Into<String>) -> Result<T> {
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

    pub(super) fn has(&self, slot: BlockSlot) -> bool {
        self.part(Slot::Block(0, slot)).is_some()
    }

    fn has_model(&self, slot: ModelSlot) -> bool {
        self.part(Slot::Model(slot)).is_some()
    }

    /// The residual stream through the norm of a slot, if there is one.
    pub(super) fn normed_stream(&self, norm: BlockSlot) -> Input<BlockSlot> {
        let through = if self.has(norm) {
            Through::Norm(norm)
        } else {
            Through::Plain
        };
        Input {
            rows: Rows::Stream,
            through,
        }
    }

    /// Notes that a step writes rows of this width. All writers of the same rows must agree.
    pub(super) fn writes(&mut self, rows: Rows, width: usize) -> Result<()> {
        match *self.widths.entry(rows).or_insert(width) {
            known if known == width => Ok(()),
            known => refuse(format!(
                "rows of {known} and of {width} values for the same purpose ({rows:?})"
            )),
        }
    }

    /// Linear layers with the same input, whose outputs lie side by side in `into`.
    pub(super) fn linear<S: PartSlot>(
        &mut self,
        to_slot: impl Fn(S) -> Slot,
        input: Input<S>,
        slots: &[S],
        into: Rows,
    ) -> Result<LinearStep<S>> {
        let mut layers: Vec<Layer<S>> = Vec::new();
        let mut width = 0;
        let mut inputs = None;
        for slot in slots {
            let Some(PartSpec::Linear {
                out_features,
                in_features,
                ..
            }) = self.part(to_slot(*slot))
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
        let found = self.widths.get(&input.rows).copied().unwrap_or(0);
        let expected = if input.through == Through::Gate {
            2 * in_features
        } else {
            in_features
        };
        if found != expected {
            return refuse(format!(
                "{slots:?} take {in_features} values; there are {found} ({:?})",
                input.rows
            ));
        }

        self.writes(into, width)?;
        Ok(LinearStep {
            input: input.rows,
            through: input.through,
            in_features,
            layers,
            activation: None,
            into,
            adds: None,
        })
    }

    fn model_linear(
        &mut self,
        input: Input<ModelSlot>,
        slot: ModelSlot,
        into: Rows,
    ) -> Result<Step<ModelSlot>> {
        self.linear(Slot::Model, input, &[slot], into)
            .map(Step::Linear)
    }

    /// The width of a table.
    fn table_width(&self, slot: ModelSlot) -> Result<usize> {
        match self.part(Slot::Model(slot)) {
            Some(PartSpec::Embedding { width, .. }) => Ok(*width),
            _ => refuse(format!("there is no table {slot:?}")),
        }
    }

    fn embed(&mut self) -> Result<Vec<Step<ModelSlot>>> {
        let positions = self
            .has_model(ModelSlot::Positions)
            .then_some(ModelSlot::Positions);

        let mut steps = Vec::new();
        if self.has_model(ModelSlot::ProjectIn) {
            self.projected_embeddings(&mut steps, positions)?;
        } else {
            for slot in [ModelSlot::Tokens].into_iter().chain(positions) {
                let width = self.table_width(slot)?;
                self.writes(Rows::Stream, width)?;
            }
            steps.push(self.tokens(Rows::Stream, positions));
        }

        if self.has_model(ModelSlot::EmbeddingNorm) {
            steps.push(Step::Norm(NormStep {
                norm: ModelSlot::EmbeddingNorm,
                rows: Rows::Stream,
            }));
        }
        Ok(steps)
    }

    /// Token embeddings, to which position embeddings may be added.
    fn tokens(&self, into: Rows, positions: Option<ModelSlot>) -> Step<ModelSlot> {
        Step::Embed(Embed {
            table: ModelSlot::Tokens,
            index: Index::Token,
            scale: self.spec.embedding_scale,
            positions,
            offset: self.spec.position_offset,
            into,
        })
    }

    /// Token embeddings that a linear layer brings to the stream's width (OPT 350m), then position
    /// embeddings.
    fn projected_embeddings(
        &mut self,
        steps: &mut Vec<Step<ModelSlot>>,
        positions: Option<ModelSlot>,
    ) -> Result<()> {
        let width = self.table_width(ModelSlot::Tokens)?;
        self.writes(Rows::Embedded, width)?;
        steps.push(self.tokens(Rows::Embedded, None));

        let input = Input::plain(Rows::Embedded);
        steps.push(self.model_linear(input, ModelSlot::ProjectIn, Rows::Stream)?);

        if let Some(table) = positions {
            let width = self.table_width(table)?;
            self.writes(Rows::Branch, width)?;
            steps.push(Step::Embed(Embed {
                table,
                index: Index::Position,
                scale: 1.0,
                positions: None,
                offset: self.spec.position_offset,
                into: Rows::Branch,
            }));
            steps.push(Step::Add(Add {
                from: Rows::Branch,
                scale: 1.0,
            }));
        }
        Ok(())
    }

    fn head(&mut self) -> Result<Vec<Step<ModelSlot>>> {
        let spec = self.spec;
        let through = if self.has_model(ModelSlot::FinalNorm) {
            Through::Norm(ModelSlot::FinalNorm)
        } else {
            Through::Plain
        };
        let mut input = Input {
            rows: Rows::Stream,
            through,
        };

        let mut steps = Vec::new();
        if self.has_model(ModelSlot::ProjectOut) {
            steps.push(self.model_linear(input, ModelSlot::ProjectOut, Rows::Projected)?);
            input = Input::plain(Rows::Projected);
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
}
