//! The `llm-int8` program: run any Hugging Face causal language model in 8 bit.

mod args;
mod client;
mod commands;
mod display;
mod hints;
mod interrupt;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    display::show_warnings();
    let arguments = args::with_negative_numbers(std::env::args_os());
    let arguments = match args::Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => return display::usage(&hints::with_option(error)),
    };
    match commands::dispatch(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if display::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            display::error(&error);
            ExitCode::from(if error.is::<args::UsageError>() { 2 } else { 1 })
        }
    }
}
