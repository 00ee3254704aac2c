//! Guest images: built once, cached, booted by tests.
