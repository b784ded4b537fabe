//! A Compose file, read and checked.
