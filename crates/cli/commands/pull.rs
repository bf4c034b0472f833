//! `llm-int8 pull`: a model into the cache.

use super::hub_config;
use crate::args::{PullArgs, WrongUse};
use crate::display::Downloads;
use llm_int8::hub::{Hub, HubError, ModelRef};
use std::io::Write;

pub(crate) fn pull(args: &PullArgs) -> anyhow::Result<()> {
    let model: ModelRef = args.model.parse().map_err(|error: HubError| WrongUse(error.to_string()))?;
    if let ModelRef::Local(folder) = &model {
        let text =
            format!("{} is a folder; pull takes a model of the hub, such as gpt2-large", folder.display());
        return Err(WrongUse(text).into());
    }
    let files = Hub::new(hub_config(args.offline)).resolve(&model, &Downloads::new())?;
    writeln!(std::io::stdout().lock(), "{}", files.root.display())?;
    Ok(())
}
