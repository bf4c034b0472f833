//! `llm-int8 serve`: a server that OpenAI's clients talk to.

use super::{load_config, load_named};
use crate::args::{Outliers, ServeArgs, Threshold, UsageError};
use crate::display::line;
use anyhow::Context;
use llm_int8_server::{ApiKeys, RunError, Server, ServerError};
use std::time::Instant;

pub(crate) fn serve(mut args: ServeArgs) -> anyhow::Result<()> {
    set_row_scope(&mut args);
    let mut config = args.config();
    if let Some(path) = &args.api_key_file {
        config.api_keys = ApiKeys::from_file(path)?;
    }
    if let Some(path) = &args.chat_template {
        let text = std::fs::read_to_string(path);
        let text = text.with_context(|| format!("cannot read {}", path.display()))?;
        config.chat_template = Some(text);
    }

    let loading = load_config(&args.model, args.adapter.adapter.as_deref())?;
    let is_open = !args.host.is_loopback() && config.api_keys.is_empty();
    let server = Server::bind(config).map_err(usage)?.with_signals();
    let address = server.address();
    if is_open {
        line(
            "warning: everyone who reaches this address may use the server; --api-key-file asks for keys",
        );
    }
    line(&format!(
        "listening on http://{address}, loading {}",
        args.model.model
    ));

    let name = args.model.model;
    let started = Instant::now();
    let server = server.when_ready(move || {
        let seconds = started.elapsed().as_secs_f64();
        line(&format!(
            "loaded in {seconds:.2} s; chat at http://{address}"
        ));
    });
    server
        .run(move || load_named(&name, &loading))
        .map_err(|error| match error {
            RunError::Load(error) => error,
            RunError::Server(error) => error.into(),
        })
}

/// Outliers for each row, unless the options say otherwise: with those of the whole batch, the
/// outliers of one request would change the text of another.
fn set_row_scope(args: &mut ServeArgs) {
    let model = &mut args.model;
    let has_rule = model.accuracy.is_some()
        || model.no_quantize
        || model.outliers.is_some()
        || matches!(model.threshold, Some(Threshold::Rms(_)));
    if !has_rule {
        model.outliers = Some(Outliers::Row);
    }
}

fn usage(error: ServerError) -> anyhow::Error {
    match error {
        ServerError::Setting { .. } => UsageError(error.to_string()).into(),
        error => error.into(),
    }
}
