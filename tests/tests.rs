//! Integration tests: what spans crates, and the program. One binary.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests stop at the first surprise"
)]

mod accuracy;
mod adapters;
mod affine;
mod bnb_checkpoints;
mod cache_dtype;
mod chat;
mod chat_page;
mod chat_server;
mod chat_server_errors;
mod chat_templates;
#[cfg(unix)]
mod chat_terminal;
mod checkpoints;
mod cli;
mod cli_arguments;
mod cli_bench;
mod cli_inspect;
mod compare;
mod device_placement;
mod device_program;
mod devices;
mod documentation;
mod examples;
mod families;
mod field_cases;
mod field_dtypes;
mod field_quantization;
mod field_weights;
mod first_light;
mod generate;
mod generation;
mod generation_options;
mod gguf;
mod gguf_tokenizers;
mod gpt2_large;
mod gpt2_parity;
mod hostile;
mod hub_program;
mod lora;
mod outliers;
mod outliers_page;
mod outliers_program;
mod pickles;
mod plans;
mod published;
mod serve;
mod serve_chat;
mod serve_page;
#[cfg(unix)]
mod signals;
mod smollm2;
mod support;
mod tidy;
mod tiny_gpt2;
mod tokenizers;
mod verify;
