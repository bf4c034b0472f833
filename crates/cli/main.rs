//! The `llm-int8` program.
fn main() {}
