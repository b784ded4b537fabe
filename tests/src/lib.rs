//! Tests of the whole system; this library is what they share.
