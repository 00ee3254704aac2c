use super::*;

/// A length and what follows it.
fn said(len: u32, rest: &[u8]) -> Vec<u8> {
    [&len.to_be_bytes(), rest].concat()
}

#[test]
fn texts_and_bytes_are_padded_with_zeros_to_whole_words() {
    let mut out = Writer::new();
    out.text("abcde");
    out.opaque(&[]);
    out.opaque(&[1, 2, 3, 4]);
    let payload = out.into_payload();
    assert_eq!(payload, b"\0\0\0\x05abcde\0\0\0\0\0\0\0\0\0\0\x04\x01\x02\x03\x04");
    let mut fields = Reader::new(&payload);
    assert_eq!(fields.text("a", 5), Ok("abcde"));
    assert_eq!(fields.opaque("b", 0), Ok(&[][..]));
    assert_eq!(fields.opaque("c", 4), Ok(&[1, 2, 3, 4][..]));
    assert_eq!(fields.end(), Ok(()));
}

#[test]
fn padding_with_anything_else_is_refused() {
    for at in 1..=3 {
        let mut payload = said(1, b"a\0\0\0");
        payload[4 + at] = 1;
        let read = Reader::new(&payload).text("name", 10);
        assert_eq!(read, Err(XdrError::Padding { what: "name" }));
    }
    let cut = said(1, b"a\0\0");
    let read = Reader::new(&cut).text("name", 10);
    assert_eq!(read, Err(XdrError::TooShort { what: "name", wanted: 4, left: 3 }));
}

#[test]
fn a_length_is_compared_with_its_limit_before_the_bytes_are_looked_for() {
    let payload = said(11, &[]);
    let read = Reader::new(&payload).opaque("cookie", 10);
    assert_eq!(read, Err(XdrError::Length { what: "cookie", len: 11, max: 10 }));
}

#[test]
fn a_text_with_a_nul_or_other_bytes_than_utf_8_is_refused() {
    assert_eq!(
        Reader::new(&said(4, b"a\0bc")).text("name", 10),
        Err(XdrError::Nul { what: "name" })
    );
    let latin = said(4, b"caf\xe9");
    assert_eq!(Reader::new(&latin).text("name", 10), Err(XdrError::NotUtf8 { what: "name" }));
}

#[test]
fn a_boolean_is_0_or_1() {
    let found = Reader::new(&2_u32.to_be_bytes()).bool("there");
    assert_eq!(found, Err(XdrError::NotBoolean { what: "there", found: 2 }));
}

#[test]
fn a_count_that_the_rest_cannot_hold_is_refused_before_room_is_made() {
    // Three elements of eight bytes or more do not lie in sixteen.
    let payload = said(3, &[0; 16]);
    let read = Reader::new(&payload).list("elements", 1 << 30, 8, |fields| fields.u64("element"));
    assert_eq!(read, Err(XdrError::TooShort { what: "elements", wanted: 24, left: 16 }));
    let many = said(u32::MAX, &[0; 16]);
    let read = Reader::new(&many).list("elements", usize::MAX, 8, |fields| fields.u64("element"));
    let wanted = 8 * u64::from(u32::MAX);
    assert_eq!(read, Err(XdrError::TooShort { what: "elements", wanted, left: 16 }));
    let read = Reader::new(&many).list("elements", 64, 8, |fields| fields.u64("element"));
    assert_eq!(read, Err(XdrError::Count { what: "elements", count: u32::MAX, max: 64 }));
}

/// A list of lists of lists, as no type of libvirt's is.
fn nest(fields: &mut Reader<'_>) -> Result<(), XdrError> {
    fields.list("nest", 1, 4, nest).map(|_| ())
}

#[test]
fn what_lies_too_deep_is_refused_and_not_recursed_into() {
    let flat =
        [vec![1; 0], 1_u32.to_be_bytes().repeat(usize::from(DEPTH_MAX)), vec![0; 4]].concat();
    assert_eq!(nest(&mut Reader::new(&flat)), Ok(()));
    let deep = 1_u32.to_be_bytes().repeat(100_000);
    assert_eq!(nest(&mut Reader::new(&deep)), Err(XdrError::Depth { what: "nest" }));
}
