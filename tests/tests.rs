//! Tests across crates and of the program, in one binary.

#![expect(missing_docs, reason = "tests document themselves by their names")]

mod gpt2_parity;
mod support;
