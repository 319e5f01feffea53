//! Documents to token ids, and whether two tokenizers turn text into the same ids.

mod added;
mod apart;
mod canonical;
mod chat;
mod class;
mod error;
mod files;
mod limits;
mod load;
mod meaning;
mod ordered;
mod rebuild;
mod special;
mod text;

pub use apart::TOKENIZERS;
pub use canonical::Difference;
pub use chat::ChatTemplate;
pub use error::{Error, Mismatch};
pub use files::TokenizerFiles;
pub use meaning::Meaning;
pub use special::{DocumentTokens, NamedToken, SpecialTokens, SpecialTokensInText};
pub use text::TextTokenizer;

#[cfg(test)]
mod tests;
