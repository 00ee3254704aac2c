//! The ledger writer and its witness.
