//! A plan as text: one line per step, runs of equal blocks printed once.

use super::*;
use std::fmt;

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "embeddings")?;
        let name = |slot: ModelSlot| path_of(&self.model_paths, slot);
        self.embed
            .iter()
            .try_for_each(|step| writeln!(f, "  {}", line(step, &name)))?;

        let name = |slot: BlockSlot| in_block(&path_of(&self.block_paths, slot));
        let mut first = 0;
        for equal in self.blocks.chunk_by(|a, b| a == b) {
            match equal.len() {
                1 => writeln!(f, "block {first}")?,
                count => writeln!(f, "blocks {first} to {}", first + count - 1)?,
            }
            equal[0]
                .iter()
                .try_for_each(|step| writeln!(f, "  {}", line(step, &name)))?;
            first += equal.len();
        }

        writeln!(f, "head")?;
        let name = |slot: ModelSlot| path_of(&self.model_paths, slot);
        self.head
            .iter()
            .try_for_each(|step| writeln!(f, "  {}", line(step, &name)))
    }
}

fn path_of<S: PartSlot>(paths: &[(S, ModulePath)], slot: S) -> String {
    let found = paths.iter().find(|(known, _)| *known == slot);
    found.map_or_else(|| format!("{slot:?}"), |(_, path)| path.to_string())
}

/// The part of a path after the block's number, which is 0 here.
fn in_block(path: &str) -> String {
    path.split_once(".0.")
        .map_or(path, |(_, rest)| rest)
        .to_owned()
}

impl fmt::Display for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The golden plans in tests/golden/models use these names.
        f.write_str(match self {
            Self::Stream => "stream",
            Self::Branch => "branch",
            Self::Attended => "attended",
            Self::Qkv => "qkv",
            Self::Heads => "mixed",
            Self::Mlp => "raised",
            Self::Embedded => "embedded",
            Self::Projected => "projected",
            Self::Logits => "logits",
        })
    }
}

/// `scale * what`, or `what` alone. Executors compute with the scale in f32.
fn scaled(scale: f64, what: &str) -> String {
    if scale == 1.0 {
        what.to_owned()
    } else {
        format!("{} * {what}", scale as f32)
    }
}

fn line<S: PartSlot>(step: &Step<S>, name: &dyn Fn(S) -> String) -> String {
    match step {
        Step::Embed(step) => embed(step, name),
        Step::Linear(step) => linear(step, name),
        Step::HeadNorm(step) => {
            format!(
                "{rows}[{of}] = {norm}({rows}[{of}])",
                rows = step.rows,
                of = name(step.of.slot),
                norm = name(step.norm)
            )
        }
        Step::Attend(step) => attend(step),
        Step::Norm(step) => format!(
            "{rows} = {norm}({rows})",
            rows = step.rows,
            norm = name(step.norm)
        ),
        Step::Add(step) => format!("stream += {}", scaled(step.scale, &step.from.to_string())),
        Step::Logits(step) => match step.softcap {
            Some(cap) => format!(
                "logits = {cap} * tanh({} / {cap})",
                scaled(step.scale, "logits")
            ),
            None => format!("logits = {}", scaled(step.scale, "logits")),
        },
    }
}

fn embed<S: PartSlot>(step: &Embed<S>, name: &dyn Fn(S) -> String) -> String {
    let index = |index| match index {
        Index::Token => "token".to_owned(),
        Index::Position if step.offset == 0 => "position".to_owned(),
        Index::Position => format!("position + {}", step.offset),
    };
    let rows = scaled(
        step.scale,
        &format!("{}[{}]", name(step.table), index(step.index)),
    );
    match step.positions {
        Some(table) => {
            let offset = index(Index::Position);
            format!("{} = {rows} + {}[{offset}]", step.into, name(table))
        }
        None => format!("{} = {rows}", step.into),
    }
}

fn linear<S: PartSlot>(step: &LinearStep<S>, name: &dyn Fn(S) -> String) -> String {
    let input = match step.through {
        Through::Plain => step.input.to_string(),
        Through::Norm(norm) => format!("{}({})", name(norm), step.input),
        Through::Gate => format!("gate({})", step.input),
    };
    let layers: Vec<String> = step.layers.iter().map(|layer| name(layer.slot)).collect();
    let width: usize = step.layers.iter().map(|layer| layer.out_features).sum();
    let mut result = match layers.as_slice() {
        [layer] => format!("{layer}({input})"),
        layers => format!("[{}]({input})", layers.join(", ")),
    };
    if let Some(Activated { function, outputs }) = step.activation {
        let class = function.class();
        result = match outputs == width {
            true => format!("{class}({result})"),
            false => format!("{result}, the first {outputs} through {class}"),
        };
    }
    match step.adds {
        Some(scale) => format!("{} += {}", step.into, scaled(scale, &result)),
        None => format!("{} = {result}", step.into),
    }
}

fn attend(step: &Attend) -> String {
    let mut rules = vec![match step.kv_heads == step.heads {
        true => format!("{} heads of {}", step.heads, step.head_size),
        false => format!(
            "{} heads of {}, {} of keys and values",
            step.heads, step.head_size, step.kv_heads
        ),
    }];
    if step.layout == QkvLayout::Grouped {
        rules.push("grouped by heads of keys".into());
    }
    rules.extend(step.clamp.map(|clamp| format!("clamped to {clamp}")));
    rules.extend(step.rope.map(|rope| format!("rotation {rope}")));
    rules.push(format!("scale {}", step.scale as f32));
    rules.extend(step.window.map(|window| format!("window {window}")));
    rules.extend(step.softcap.map(|cap| format!("soft cap {cap}")));
    rules.extend(step.alibi.then(|| "position biases".to_owned()));
    format!("mixed = attention(qkv; {})", rules.join("; "))
}
