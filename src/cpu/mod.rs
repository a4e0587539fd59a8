//! Transformer layers on the CPU: [`oracle`], what every other implementation is checked against.

pub mod oracle;
