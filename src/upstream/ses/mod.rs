//! The Amazon SES upstream: raw `SendEmail` of the v2 API.

mod settings;

pub use settings::{SenderPolicy, Settings};
