//! What paths do to packets, and cuts.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use lab::{Between, Lab, OPERATOR, Site, Wan};

const EAST: Between<'static> = Between::Operator("east");

/// Round trips that `count` pings took, in ms; lost ones have none.
fn ping(from: &Site, count: u32) -> Vec<f64> {
    let mut ping = from.command("busybox").unwrap();
    ping.args(["ping", "-A", "-c", &count.to_string(), "-W", "1", &OPERATOR.to_string()]);
    let output = String::from_utf8(ping.output().unwrap().stdout).unwrap();
    let time = |line: &str| line.split_once("time=")?.1.split(' ').next()?.parse().ok();
    output.lines().filter_map(time).collect()
}

/// A connection from a site to the operator: the site's end, and the operator's.
fn connect(lab: &Lab, site: &Site) -> (TcpStream, TcpStream) {
    let listener = lab.operator().listen(0).unwrap();
    let ours = site.inside(|| TcpStream::connect(listener.local_addr().unwrap())).unwrap().unwrap();
    let (theirs, _) = listener.accept().unwrap();
    (ours, theirs)
}

/// Mbit/s of payload from a site to the operator.
fn measure(lab: &Lab, site: &Site, mib: usize) -> f64 {
    let (mut from, mut to) = connect(lab, site);
    let start = Instant::now();
    let sender = thread::spawn(move || {
        let block = vec![0x5a; 1 << 20];
        (0..mib).for_each(|_| from.write_all(&block).unwrap());
    });
    let mut received = Vec::new();
    to.read_to_end(&mut received).unwrap();
    sender.join().unwrap();
    assert_eq!(received.len(), mib << 20);
    f64::from(u32::try_from(mib).unwrap()) * 8.388_608 / start.elapsed().as_secs_f64()
}

#[test]
fn packets_take_at_least_the_delay_each_way() {
    let delay = Duration::from_millis(20);
    let lab = Lab::builder()
        .site(lab::SiteSpec::named("east"))
        .site(lab::SiteSpec::named("west"))
        .wan_to("east", Wan { delay, ..Wan::default() })
        .start()
        .unwrap();
    let slow = ping(lab.site("east").unwrap(), 5);
    assert_eq!(slow.len(), 5, "none is lost: {slow:?}");
    assert!(slow.iter().all(|&ms| ms >= 40.0), "{slow:?}");
    println!("delay of 20 ms: round trips in ms {slow:?}");
    println!("no delay: {:?}", ping(lab.site("west").unwrap(), 5));
    assert_eq!(
        lab.traffic(Between::Operator("west")).unwrap(),
        None,
        "no shaper where none is asked"
    );
}

#[test]
fn packets_are_lost_by_chance_and_tcp_gets_everything_through() {
    let lab = Lab::relay().unwrap();
    let wan = Wan { loss: 0.05, seed: 7, ..Wan::default() };
    lab.set_wan(EAST, wan).unwrap();
    let east = lab.site("east").unwrap();
    println!("5 % loss: {:.0} Mbit/s", measure(&lab, east, 2));
    let [there, back] = lab.traffic(EAST).unwrap().unwrap();
    println!("to the site {there:?}, from it {back:?}");
    // 2 MiB are some 1450 packets: no loss at all has a chance of 1e-32.
    assert!(back.lost > 0 && back.passed > back.lost, "{back:?}");

    lab.set_wan(EAST, Wan { loss: 1.0, ..wan }).unwrap();
    assert_eq!(ping(east, 2), [] as [f64; 0]);
    lab.set_wan(EAST, Wan::default()).unwrap();
    assert_eq!(ping(east, 2).len(), 2);
}

#[test]
fn the_same_seed_loses_the_same_packets() {
    let lost = || {
        let lab = Lab::relay().unwrap();
        let east = lab.site("east").unwrap();
        let wan = Wan { loss: 0.5, seed: 3, ..Wan::default() };
        // ARP is known and IPv6 is off: only our packets are on the path.
        lab.set_wan(EAST, wan).unwrap();
        let socket = lab
            .operator()
            .inside(|| std::net::UdpSocket::bind(SocketAddr::from((OPERATOR, 0))))
            .unwrap()
            .unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let to = socket.local_addr().unwrap();
        let sender = east.inside(|| std::net::UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
        (0..100_u8).for_each(|number| assert_eq!(sender.send_to(&[number], to).unwrap(), 1));
        let mut seen = Vec::new();
        let mut byte = [0];
        while socket.recv(&mut byte).is_ok() {
            seen.push(byte[0]);
        }
        seen
    };
    let first = lost();
    assert!((20..80).contains(&first.len()), "{first:?}");
    assert_eq!(first, lost());
}

#[test]
fn no_more_passes_than_the_rate() {
    let lab = Lab::relay().unwrap();
    let east = lab.site("east").unwrap();
    println!("plain: {:.0} Mbit/s", measure(&lab, east, 256));
    lab.set_wan(EAST, Wan { rate: Some(100), ..Wan::default() }).unwrap();
    // The bucket lets 64 KiB through at once, nothing of it counts after 8 MiB.
    let limited = measure(&lab, east, 8);
    println!("rate of 100 Mbit/s: {limited:.1} Mbit/s");
    assert!(limited < 101.0, "{limited}");
    lab.set_wan(EAST, Wan::COUNTRY).unwrap();
    let country = measure(&lab, east, 8);
    println!("and 50 ms, 0.1 % loss: {country:.1} Mbit/s");
    assert!(country < 101.0, "{country}");
    lab.set_wan(EAST, Wan { delay: Duration::from_micros(500), ..Wan::default() }).unwrap();
    println!("1 ms and no rate, all in the shaper: {:.0} Mbit/s", measure(&lab, east, 64));
    lab.set_wan(
        EAST,
        Wan { rate: Some(1000), delay: Duration::from_micros(500), ..Wan::default() },
    )
    .unwrap();
    println!("1 ms and 1 Gbit/s: {:.0} Mbit/s", measure(&lab, east, 64));
}

#[test]
fn a_cut_is_silent_and_connections_live_on_when_it_is_healed() {
    let lab = Lab::relay().unwrap();
    let (east, west) = (lab.site("east").unwrap(), lab.site("west").unwrap());
    let (mut ours, mut theirs) = connect(&lab, east);
    lab.cut(EAST).unwrap();
    ours.write_all(b"late").unwrap();
    theirs.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let nothing = theirs.read(&mut [0; 4]).unwrap_err();
    assert_eq!(nothing.kind(), ErrorKind::WouldBlock, "no end, no error: {nothing}");
    let libvirtd = SocketAddr::from((east.address(), 16_509));
    let refused = lab.operator().connect(libvirtd, Duration::from_millis(1500)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::TimedOut, "not refused, not unreachable: {refused}");
    assert_eq!(ping(west, 2).len(), 2, "the other site's path is whole");

    lab.heal(EAST).unwrap();
    theirs.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut read = [0; 4];
    theirs.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"late");
}

#[test]
fn a_cut_holds_through_delay_and_a_power_cycle() {
    let lab = Lab::relay().unwrap();
    let east = lab.site("east").unwrap();
    lab.set_wan(EAST, Wan { delay: Duration::from_millis(5), ..Wan::default() }).unwrap();
    assert_eq!(ping(east, 1).len(), 1);
    lab.cut(EAST).unwrap();
    lab.power_off("east").unwrap();
    lab.power_on("east").unwrap();
    assert_eq!(ping(east, 1), [] as [f64; 0]);
    lab.heal(EAST).unwrap();
    assert!(ping(east, 1).iter().all(|&ms| ms >= 10.0));
    assert_eq!(ping(east, 1).len(), 1);
}

#[test]
fn the_operator_is_found_at_one_address_from_every_site() {
    let lab = Lab::relay().unwrap();
    let listener: TcpListener = lab.operator().listen(7000).unwrap();
    for site in lab.sites() {
        let mut from = site.inside(|| TcpStream::connect((OPERATOR, 7000))).unwrap().unwrap();
        from.write_all(b"x").unwrap();
        let (mut to, who) = listener.accept().unwrap();
        assert_eq!(who.ip(), site.address());
        to.read_exact(&mut [0]).unwrap();
    }
}
