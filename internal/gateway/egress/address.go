// SPDX-License-Identifier: Apache-2.0

package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"
)

// metadata are services that hand out credentials or configuration to whoever asks from a host: of the large clouds.
var metadata = prefixes("169.254.169.254/32", "169.254.170.2/32", "169.254.170.23/32", "fd00:ec2::254/128", "fd00:ec2::23/128",
	"fd20:ce::254/128", "100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32")

// local are addresses that only a private target may lead to.
var local = prefixes("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "::1/128", "fc00::/7")

// special are no unicast addresses of the public network (IANA's special-purpose registries), and forms of IPv6 that carry an IPv4
// address, which would walk past every other rule: NAT64, 6to4, Teredo, IPv4-compatible.
var special = prefixes("0.0.0.0/8", "169.254.0.0/16", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24",
	"203.0.113.0/24", "224.0.0.0/3", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")

var globalUnicast = netip.MustParsePrefix("2000::/3")

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func parsePrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		return netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Masked() != p || p.Addr().Is4In6() {
		return netip.Prefix{}, invalid("addresses: %.60q is no address, and no network in its shortest form such as 10.1.0.0/16", s)
	}
	return p, nil
}

func in(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}

// mayDial reports whether t may lead to a.
func (t *Target) mayDial(a netip.Addr) bool {
	a = a.Unmap() // ::ffff:10.0.0.1 is 10.0.0.1
	if !a.IsValid() || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() {
		return false
	}
	//remit:guard S28 TestMetadataNeedsItsAddress
	if in(metadata, a) {
		return slices.Contains(t.addresses, netip.PrefixFrom(a, a.BitLen()))
	}
	if len(t.addresses) > 0 {
		return in(t.addresses, a)
	}
	if in(local, a) {
		return t.private
	}
	//remit:guard S28 TestAddresses
	if in(special, a) {
		return false
	}
	return a.Is4() || globalUnicast.Contains(a)
}

// errAddress says that a name led to no address that may be dialled.
var errAddress = errors.New("its name leads to no address that may be dialled")

// dial resolves the target's host and connects to an address that was checked: nobody resolves the name a second time, so an answer
// that changes changes nothing.
func (p *Proxy) dial(ctx context.Context, t *Target) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	addrs, err := p.resolve(ctx, t.host)
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", t.host, err)
	}
	err = errAddress
	for i, a := range addrs {
		if i == maxAddresses {
			break
		}
		//remit:guard S28 TestRebinding
		if !t.mayDial(a) {
			continue
		}
		d := net.Dialer{Timeout: dialTimeout / 2, KeepAlive: 30 * time.Second}
		conn, derr := d.DialContext(ctx, "tcp", joinHostPort(a.Unmap().String(), t.port))
		if derr == nil {
			return conn, nil
		}
		err = derr
	}
	return nil, fmt.Errorf("reach %s: %w", t.hostPort(), err)
}

func (p *Proxy) resolve(ctx context.Context, host string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}, nil
	}
	return p.cfg.Resolve(ctx, host)
}

const (
	dialTimeout  = 20 * time.Second
	maxAddresses = 16
)
