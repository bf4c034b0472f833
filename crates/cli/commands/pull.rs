//! `llm-int8 pull`: download a model into the cache.

use super::hub_config;
use crate::args::{PullArgs, UsageError};
use crate::display::Downloads;
use llm_int8::builtin;
use llm_int8::hub::{Hub, HubError, ModelRef};
use std::io::Write;

pub(crate) fn pull(args: &PullArgs) -> anyhow::Result<()> {
    if args.model == builtin::NAME {
        let text = format!(
            "{} is built in; there is nothing to download",
            builtin::NAME
        );
        return Err(UsageError(text).into());
    }

    let model: ModelRef = args
        .model
        .parse()
        .map_err(|error: HubError| UsageError(error.to_string()))?;
    if let ModelRef::Local(folder) = &model {
        let text = format!(
            "{} is a path; pull takes a model of the hub, such as gpt2-large",
            folder.display()
        );
        return Err(UsageError(text).into());
    }

    let config = hub_config(args.offline);
    let downloads = Downloads::new(&config);
    let files = Hub::new(config).resolve(&model, &downloads)?;
    writeln!(std::io::stdout().lock(), "{}", files.root.display())?;

    Ok(())
}
