//! Records about queues and exchanges, and the application's values.
//!
//! Each is live until a later one about the same thing supersedes it. Options and patterns are opaque here.

use crate::format::bytes::{Malformed, Reader, put_bytes, put_varint};

/// A queue and its options, new or changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Declare<'a> {
    pub(crate) queue: u32,
    pub(crate) name: &'a [u8],
    pub(crate) options: &'a [u8],
}

impl<'a> Declare<'a> {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.queue.into());
        put_bytes(out, self.name);
        out.extend_from_slice(self.options);
    }

    pub(super) fn decode(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        Ok(Self { queue: reader.varint_u32()?, name: reader.bytes()?, options: reader.rest() })
    }
}

/// What binds a queue to an exchange; Bind and Unbind have the same content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Binding<'a> {
    pub(crate) exchange: &'a [u8],
    pub(crate) exchange_kind: u8,
    pub(crate) queue: u32,
    pub(crate) pattern: &'a [u8],
}

impl<'a> Binding<'a> {
    #[cfg_attr(
        not(any(test, feature = "testing")),
        expect(dead_code, reason = "part of format 1; exchanges come later")
    )]
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        put_bytes(out, self.exchange);
        out.push(self.exchange_kind);
        put_varint(out, self.queue.into());
        out.extend_from_slice(self.pattern);
    }

    pub(super) fn decode(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        Ok(Self {
            exchange: reader.bytes()?,
            exchange_kind: reader.u8()?,
            queue: reader.varint_u32()?,
            pattern: reader.rest(),
        })
    }
}

/// One of the application's own key-value pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Value<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) value: &'a [u8],
}

impl<'a> Value<'a> {
    #[cfg_attr(
        not(any(test, feature = "testing")),
        expect(dead_code, reason = "part of format 1; values come later")
    )]
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        put_bytes(out, self.key);
        out.extend_from_slice(self.value);
    }

    pub(super) fn decode(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        Ok(Self { key: reader.bytes()?, value: reader.rest() })
    }
}
