//! The only place that names files and mappings.
