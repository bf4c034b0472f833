//! SentencePiece's `tokenizer.model`: the part of its protobuf that is needed to build a tokenizer
//! (`sentencepiece_model.proto`).

use prost::Message;

/// `ModelProto`.
#[derive(Message)]
pub(super) struct Model {
    #[prost(message, repeated, tag = "1")]
    pub(super) pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    pub(super) trainer: Option<TrainerSpec>,
}

/// A piece of the vocabulary. Its id is its index. `prost` generates `text()` and `score()`.
#[derive(Message)]
pub(super) struct Piece {
    #[prost(string, optional, tag = "1")]
    text: Option<String>,
    #[prost(float, optional, tag = "2")]
    score: Option<f32>,
    #[prost(int32, optional, tag = "3")]
    kind: Option<i32>,
}

/// The needed part of `TrainerSpec`.
#[derive(Message)]
pub(super) struct TrainerSpec {
    #[prost(int32, optional, tag = "3")]
    model_type: Option<i32>,
    #[prost(string, optional, tag = "45")]
    unknown_piece: Option<String>,
}

/// `TrainerSpec.ModelType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    Unigram,
    Bpe,
    /// Word or character models.
    Other(i32),
}

impl Piece {
    /// `SentencePiece.Type`
    const CONTROL: i32 = 3;
    const USER_DEFINED: i32 = 4;

    pub(super) fn is_control(&self) -> bool {
        self.kind == Some(Self::CONTROL)
    }

    pub(super) fn is_user_defined(&self) -> bool {
        self.kind == Some(Self::USER_DEFINED)
    }
}

impl Model {
    /// Parses the bytes of a file.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let model = Self::decode(bytes).map_err(|cause| cause.to_string())?;
        if model.pieces.is_empty() {
            return Err("it has no pieces".into());
        }

        Ok(model)
    }

    pub(super) fn algorithm(&self) -> Algorithm {
        // The default in the proto is 1.
        match self
            .trainer
            .as_ref()
            .and_then(|trainer| trainer.model_type)
            .unwrap_or(1)
        {
            1 => Algorithm::Unigram,
            2 => Algorithm::Bpe,
            other => Algorithm::Other(other),
        }
    }

    /// The piece that stands for unknown text.
    pub(super) fn unknown_piece(&self) -> &str {
        self.trainer
            .as_ref()
            .and_then(|trainer| trainer.unknown_piece.as_deref())
            .unwrap_or("<unk>")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn any_bytes_give_a_model_or_an_error(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            if let Ok(model) = Model::parse(&bytes) {
                proptest::prop_assert!(!model.pieces.is_empty());
            }
        }
    }

    #[test]
    fn other_file_formats_are_refused() {
        // tiktoken's format: on each line a base64 token and its rank.
        assert!(Model::parse(b"IQ== 0\nIg== 1\n").is_err());
        assert!(Model::parse(b"").is_err());
    }
}
