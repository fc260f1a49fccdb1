//! What lies on disk: encode beside decode, pure.
