//! Names of the ways to compute attention.

use std::fmt;
use std::str::FromStr;

use crate::error::Error;

/// One way to compute attention. Written `sm80:rows128`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AttentionVariant {
    /// The portable kernel.
    Sm80 {
        /// Query rows of a block; which there are depends on the head's width (see
        /// [`attention_variants`](crate::gpu::kernel::attention_variants)).
        rows: usize,
    },
}

impl fmt::Display for AttentionVariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sm80 { rows } => write!(f, "sm80:rows{rows}"),
        }
    }
}

impl FromStr for AttentionVariant {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        parse(text).ok_or_else(|| Error::InvalidConfig {
            field: "variant",
            got: text.to_owned(),
            expected: "sm80:rowsN with N the query rows of a block, e.g. sm80:rows128".into(),
        })
    }
}

fn parse(text: &str) -> Option<AttentionVariant> {
    let rows = text.strip_prefix("sm80:rows")?;
    Some(AttentionVariant::Sm80 { rows: rows.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for rows in [32, 64, 128] {
            let variant = AttentionVariant::Sm80 { rows };
            assert_eq!(variant.to_string().parse::<AttentionVariant>().unwrap(), variant);
        }
        for bad in ["", "sm80", "sm80:rows", "sm80:128", "rows128", "sm80:rowsx"] {
            assert!(bad.parse::<AttentionVariant>().unwrap_err().to_string().contains("sm80:rows128"), "{bad}");
        }
    }
}
