//! `llm-int8 tokenize`: encode a text or decode token ids.

use super::{explain, hub_config};
use crate::args::{TokenizeArgs, UsageError};
use crate::display::Downloads;
use anyhow::Context;
use llm_int8::Tokenizer;
use serde_json::json;
use std::io::{Read, Write};

pub(crate) fn tokenize(args: &TokenizeArgs) -> anyhow::Result<()> {
    let mut text = args.text.clone();
    if text == "-" {
        text.clear();
        std::io::stdin()
            .read_to_string(&mut text)
            .context("cannot read standard input")?;
    }

    let ids = if args.decode {
        parse_ids(&text)?
    } else {
        Vec::new()
    };

    let hub = hub_config(args.offline);
    let tokenizer = Tokenizer::from_pretrained(&args.model, &hub, &Downloads::new(&hub))
        .map_err(|error| explain(error, &args.model))?;

    let mut stdout = std::io::stdout().lock();
    if args.decode {
        let text = match args.skip_special_tokens {
            true => tokenizer.decode(&ids)?,
            false => tokenizer.decode_all(&ids)?,
        };
        writeln!(stdout, "{text}")?;
        return Ok(());
    }

    let ids = match args.no_special_tokens {
        true => tokenizer.encode_templated(&text)?,
        false => tokenizer.encode(&text)?,
    };
    let token = |id: u32| tokenizer.token(id).unwrap_or_default();
    if args.ids {
        let list: Vec<String> = ids.iter().map(u32::to_string).collect();
        writeln!(stdout, "[{}]", list.join(", "))?;
    } else if args.json {
        let tokens = ids.iter().map(
            |id| json!({ "id": id, "token": token(*id), "special": tokenizer.is_special(*id) }),
        );
        writeln!(
            stdout,
            "{}",
            json!({ "ids": ids, "tokens": tokens.collect::<Vec<_>>() })
        )?;
    } else {
        for id in ids {
            writeln!(stdout, "{id:6} -> '{}'", token(id))?;
        }
    }

    Ok(())
}

/// Parses `1,2,3`, `1 2 3` or `[1, 2, 3]`.
fn parse_ids(text: &str) -> anyhow::Result<Vec<u32>> {
    let list = text.trim().trim_start_matches('[').trim_end_matches(']');
    let parts = list
        .split(|c: char| c == ',' || c.is_whitespace())
        .filter(|part| !part.is_empty());
    let wrong = |part: &str| {
        UsageError(format!(
            "{part:?} is not a token id; expected ids, as in 1,2,3"
        ))
    };
    parts
        .map(|part| part.parse().map_err(|_| wrong(part).into()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_notations_of_ids_are_parsed() {
        for text in ["1,2,30", "1 2 30", "[1, 2, 30]", " [1,2,\n30]\n"] {
            assert_eq!(parse_ids(text).unwrap(), [1, 2, 30]);
        }

        assert!(parse_ids("").unwrap().is_empty());
        assert!(parse_ids("1,x").unwrap_err().to_string().contains("\"x\""));
        assert!(parse_ids("-1").is_err());
    }
}
