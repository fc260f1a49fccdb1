//! What goes with a payload: keys with typed values.

use std::borrow::Cow;

use crate::format::record::headers::{self as stored, HeaderBlock};

pub(crate) const CONTENT_TYPE: &str = "content-type";
pub(crate) const CORRELATION_ID: &str = "correlation-id";
pub(crate) const REPLY_TO: &str = "reply-to";

/// The value of a header.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HeaderValue<'a> {
    /// Text.
    String(Cow<'a, str>),
    /// Any bytes.
    Bytes(Cow<'a, [u8]>),
    /// A whole number.
    Integer(i64),
    /// True or false.
    Bool(bool),
}

impl HeaderValue<'_> {
    /// The text, if it is text.
    pub fn as_str(&self) -> Option<&str> {
        if let HeaderValue::String(text) = self { Some(text) } else { None }
    }

    /// The bytes, if it is bytes.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        if let HeaderValue::Bytes(bytes) = self { Some(bytes) } else { None }
    }

    /// The number, if it is a number.
    pub fn as_integer(&self) -> Option<i64> {
        if let HeaderValue::Integer(number) = self { Some(*number) } else { None }
    }

    /// Whether it is true, if it is true or false.
    pub fn as_bool(&self) -> Option<bool> {
        if let HeaderValue::Bool(flag) = self { Some(*flag) } else { None }
    }

    pub(crate) fn borrow(&self) -> HeaderValue<'_> {
        self.stored().into()
    }

    pub(crate) fn stored(&self) -> stored::HeaderValue<'_> {
        match self {
            HeaderValue::String(text) => stored::HeaderValue::String(text),
            HeaderValue::Bytes(bytes) => stored::HeaderValue::Bytes(bytes),
            HeaderValue::Integer(number) => stored::HeaderValue::Integer(*number),
            HeaderValue::Bool(flag) => stored::HeaderValue::Bool(*flag),
        }
    }
}

impl<'a> From<stored::HeaderValue<'a>> for HeaderValue<'a> {
    fn from(value: stored::HeaderValue<'a>) -> Self {
        match value {
            stored::HeaderValue::String(text) => HeaderValue::String(text.into()),
            stored::HeaderValue::Bytes(bytes) => HeaderValue::Bytes(bytes.into()),
            stored::HeaderValue::Integer(number) => HeaderValue::Integer(number),
            stored::HeaderValue::Bool(flag) => HeaderValue::Bool(flag),
        }
    }
}

impl<'a> From<&'a str> for HeaderValue<'a> {
    fn from(text: &'a str) -> Self {
        HeaderValue::String(text.into())
    }
}

impl From<String> for HeaderValue<'_> {
    fn from(text: String) -> Self {
        HeaderValue::String(text.into())
    }
}

impl<'a> From<&'a [u8]> for HeaderValue<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        HeaderValue::Bytes(bytes.into())
    }
}

impl From<Vec<u8>> for HeaderValue<'_> {
    fn from(bytes: Vec<u8>) -> Self {
        HeaderValue::Bytes(bytes.into())
    }
}

impl From<i64> for HeaderValue<'_> {
    fn from(number: i64) -> Self {
        HeaderValue::Integer(number)
    }
}

impl From<i32> for HeaderValue<'_> {
    fn from(number: i32) -> Self {
        HeaderValue::Integer(number.into())
    }
}

impl From<u32> for HeaderValue<'_> {
    fn from(number: u32) -> Self {
        HeaderValue::Integer(number.into())
    }
}

impl From<bool> for HeaderValue<'_> {
    fn from(flag: bool) -> Self {
        HeaderValue::Bool(flag)
    }
}

/// The headers of a message, read where they lie in the log, in the order in which they were added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Headers<'a> {
    block: HeaderBlock<'a>,
}

impl<'a> Headers<'a> {
    pub(crate) fn new(block: HeaderBlock<'a>) -> Headers<'a> {
        Headers { block }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.block.count()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value of a header; looks at one after the other.
    pub fn get(&self, key: &str) -> Option<HeaderValue<'a>> {
        self.iter().find(|(there, _)| *there == key).map(|(_, value)| value)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, HeaderValue<'a>)> + use<'a> {
        self.block.iter().map(|(key, value)| (key, value.into()))
    }

    /// What the payload is: see [`Message::content_type`](crate::Message::content_type).
    pub fn content_type(&self) -> Option<&'a str> {
        self.text(CONTENT_TYPE)
    }

    /// Which request it answers: see [`Message::correlation_id`](crate::Message::correlation_id).
    pub fn correlation_id(&self) -> Option<&'a str> {
        self.text(CORRELATION_ID)
    }

    /// Where an answer is expected: see [`Message::reply_to`](crate::Message::reply_to).
    pub fn reply_to(&self) -> Option<&'a str> {
        self.text(REPLY_TO)
    }

    fn text(&self, key: &str) -> Option<&'a str> {
        let found = self.block.iter().find(|(there, _)| *there == key);
        found.and_then(|(_, value)| match value {
            stored::HeaderValue::String(text) => Some(text),
            _ => None,
        })
    }
}
