//! A network namespace for the pods and nodes of a test.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};

/// Network 10.254.240.0/24: the host has .1 and those of [`Namespace::host_address`], the namespace
/// .2 to .57 and .70. Its IPv6 addresses are `fd00:10:254:240::44` and `64:ff9b::7f00:1`.
const NETWORK: [u8; 3] = [10, 254, 240];

/// Proxy settings in the environment of servers. They apply only to addresses beyond the first 64,
/// and the bastion must ignore them.
pub const PROXY_ENVIRONMENT: [(&str, &str); 2] = [
    ("HTTP_PROXY", "http://10.254.240.42:3128"),
    (
        "NO_PROXY",
        "localhost,.test,127.0.0.0/8,10.254.240.0/26,fd00::/8,64:ff9b::/96",
    ),
];

/// Network namespace, connected to the host by a veth pair. Dropping it removes both.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Creates the namespace.
    ///
    /// # Errors
    /// Returns an error if the process is not root or `ip` is missing; the message names the
    /// remedy.
    pub fn new() -> Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "the end-to-end tests need root to create a network namespace; run sudo make e2e"
        );
        let name = format!("kb-{}", std::process::id());
        let [a, b, c] = NETWORK;
        let (host, inside) = (format!("{name}-h"), format!("{name}-n"));
        // A killed run leaves its namespace behind.
        remove_leftovers()?;
        ip(&["netns", "add", &name])?;
        let namespace = Self { name };
        let name = &namespace.name;
        ip(&[
            "link", "add", &host, "type", "veth", "peer", "name", &inside, "netns", name,
        ])?;
        ip(&["addr", "add", &format!("{a}.{b}.{c}.1/24"), "dev", &host])?;
        ip(&["link", "set", &host, "up"])?;
        ip(&["-n", name, "link", "set", "lo", "up"])?;
        ip(&["-n", name, "link", "set", &inside, "up"])?;
        // `nodad` makes the IPv6 addresses usable immediately.
        ip(&[
            "-6",
            "addr",
            "add",
            "fd00:10:254:240::1/64",
            "dev",
            &host,
            "nodad",
        ])?;
        ip(&[
            "-6",
            "-n",
            name,
            "addr",
            "add",
            "fd00:10:254:240::44/64",
            "dev",
            &inside,
            "nodad",
        ])?;
        // The NAT64 form of 127.0.0.1 (RFC 6052).
        ip(&[
            "-6",
            "-n",
            name,
            "addr",
            "add",
            "64:ff9b::7f00:1/128",
            "dev",
            &inside,
            "nodad",
        ])?;
        ip(&["-6", "route", "add", "64:ff9b::7f00:1/128", "dev", &host])?;
        for last in (2..58).chain([70]) {
            ip(&[
                "-n",
                name,
                "addr",
                "add",
                &format!("{a}.{b}.{c}.{last}/24"),
                "dev",
                &inside,
            ])?;
        }
        Ok(namespace)
    }

    /// Name of the namespace in `ip netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns an address of the namespace.
    #[expect(
        clippy::unused_self,
        reason = "the addresses exist as long as the namespace"
    )]
    pub fn address(&self, last: u8) -> Ipv4Addr {
        let [a, b, c] = NETWORK;
        Ipv4Addr::new(a, b, c, last)
    }

    /// Adds an address to the host's end of the network, and returns it.
    ///
    /// # Errors
    /// Returns an error if `ip` fails.
    pub fn host_address(&self, last: u8) -> Result<Ipv4Addr> {
        let address = self.address(last);
        let device = format!("{}-h", self.name);
        ip(&["addr", "replace", &format!("{address}/24"), "dev", &device])?;
        Ok(address)
    }

    /// Drops all packets to an address until [`Self::heal`], without RST or ICMP. The address need
    /// not exist.
    ///
    /// # Errors
    /// Returns an error if the address is one of the host, or `ip` fails.
    pub fn black_hole(&self, address: Ipv4Addr) -> Result<()> {
        // Connecting a UDP socket selects the source address and sends nothing.
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect((address, 9))?;
        ensure!(
            socket.local_addr()?.ip() != address,
            "{address} is an address of the host, so that packets to it do not leave it"
        );
        // The other end of the veth pair drops frames for an unknown MAC address.
        let (address, device) = (address.to_string(), format!("{}-h", self.name));
        ip(&[
            "neigh",
            "replace",
            &address,
            "lladdr",
            "02:00:00:00:00:01",
            "nud",
            "permanent",
            "dev",
            &device,
        ])
    }

    /// Makes an address reachable again.
    ///
    /// # Errors
    /// Returns an error if `ip` fails.
    pub fn heal(&self, address: Ipv4Addr) -> Result<()> {
        ip(&[
            "neigh",
            "del",
            &address.to_string(),
            "dev",
            &format!("{}-h", self.name),
        ])
    }

    /// Returns a listener in the namespace. A socket stays in the namespace in which it was
    /// created, so any thread can serve it.
    ///
    /// # Errors
    /// Returns an error if the address is in use.
    pub fn bind(&self, address: SocketAddr) -> Result<TcpListener> {
        self.enter(move || {
            let listener = TcpListener::bind(address)
                .with_context(|| format!("cannot listen on {address}"))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        })
    }

    /// As [`Self::bind`], for UDP.
    ///
    /// # Errors
    /// Returns an error if the address is in use.
    pub fn bind_udp(&self, address: SocketAddr) -> Result<UdpSocket> {
        self.enter(move || {
            let socket =
                UdpSocket::bind(address).with_context(|| format!("cannot bind {address}"))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })
    }

    /// Runs a function on a thread in the namespace.
    fn enter<T: Send + 'static>(
        &self,
        run: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let namespace = File::open(format!("/run/netns/{}", self.name))?;
        let entered = std::thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            run()
        });
        entered
            .join()
            .map_err(|_| anyhow::anyhow!("the thread in the namespace panicked"))?
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Removes both ends of the veth pair, too.
        let _ = ip(&["netns", "delete", &self.name]);
    }
}

fn remove_leftovers() -> Result<()> {
    let list = Command::new("ip")
        .args(["netns", "list"])
        .output()
        .context("cannot run ip: install iproute2")?;
    for name in String::from_utf8_lossy(&list.stdout)
        .lines()
        .filter_map(|line| line.split_whitespace().next())
    {
        let owner = name
            .strip_prefix("kb-")
            .and_then(|pid| pid.parse::<u32>().ok());
        if owner.is_some_and(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists()) {
            ip(&["netns", "delete", name])?;
        }
    }
    Ok(())
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .context("cannot run ip: install iproute2")?;
    if !output.status.success() {
        bail!(
            "ip {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
