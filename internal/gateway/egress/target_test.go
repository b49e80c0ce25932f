// SPDX-License-Identifier: Apache-2.0

package egress_test

import (
	"crypto/x509"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	"remit"
	"remit/internal/gateway/egress"
)

// TestTargetRefuses: what is not exactly one origin, or would let a credential or another meaning through, is an error at load.
func TestTargetRefuses(t *testing.T) {
	in := func(change func(*egress.InjectConfig)) func(*egress.TargetConfig) {
		return func(c *egress.TargetConfig) {
			c.Inject = &egress.InjectConfig{Header: "X-Key", Secret: egress.SecretRef{Env: secret}, Methods: []string{"GET"}, Paths: []string{"/"}}
			change(c.Inject)
		}
	}
	for name, change := range map[string]func(*egress.TargetConfig){
		"no url":          func(c *egress.TargetConfig) { c.URL = "" },
		"a path":          func(c *egress.TargetConfig) { c.URL = "https://api.test/v1" },
		"a slash":         func(c *egress.TargetConfig) { c.URL = "https://api.test/" },
		"a user":          func(c *egress.TargetConfig) { c.URL = "https://u@api.test" },
		"a query":         func(c *egress.TargetConfig) { c.URL = "https://api.test?a" },
		"another scheme":  func(c *egress.TargetConfig) { c.URL = "ftp://api.test" },
		"a dot at end":    func(c *egress.TargetConfig) { c.URL = "https://api.test." },
		"a number":        func(c *egress.TargetConfig) { c.URL = "https://2130706433" },
		"a hex number":    func(c *egress.TargetConfig) { c.URL = "https://0x7f000001" },
		"short address":   func(c *egress.TargetConfig) { c.URL = "https://127.1" },
		"port 0":          func(c *egress.TargetConfig) { c.URL = "https://api.test:0" },
		"port 080":        func(c *egress.TargetConfig) { c.URL = "https://api.test:080" },
		"tcp, no tunnel":  func(c *egress.TargetConfig) { c.URL = "tcp://db.test:5432" },
		"tcp, no port":    func(c *egress.TargetConfig) { c.URL, c.Tunnel = "tcp://db.test", true },
		"tunnel, headers": func(c *egress.TargetConfig) { c.Tunnel, c.Headers = true, []string{"X-A"} },
		"bodies":          func(c *egress.TargetConfig) { c.Bodies = "some" },
		"timeout":         func(c *egress.TargetConfig) { c.Timeout = time.Hour },
		"address":         func(c *egress.TargetConfig) { c.Addresses = []string{"10.0.0.1/8"} },
		"mapped address":  func(c *egress.TargetConfig) { c.Addresses = []string{"::ffff:10.0.0.0/104"} },
		"ca":              func(c *egress.TargetConfig) { c.CA = "/nonexistent" },
		"Authorization":   func(c *egress.TargetConfig) { c.Headers = []string{"authorization"} },
		"Cookie":          func(c *egress.TargetConfig) { c.Headers = []string{"COOKIE"} },
		"override":        func(c *egress.TargetConfig) { c.Headers = []string{"X-HTTP-Method-Override"} },
		"Host":            func(c *egress.TargetConfig) { c.Headers = []string{"Host"} },
		"proxy header":    func(c *egress.TargetConfig) { c.Headers = []string{"Proxy-X"} },
		"no token":        func(c *egress.TargetConfig) { c.Headers = []string{"X A"} },
		"harmless":        func(c *egress.TargetConfig) { c.Headers = []string{"accept"} },
		"no methods":      in(func(i *egress.InjectConfig) { i.Methods = nil }),
		"TRACE":           in(func(i *egress.InjectConfig) { i.Methods = []string{"TRACE"} }),
		"no paths":        in(func(i *egress.InjectConfig) { i.Paths = nil }),
		"dots":            in(func(i *egress.InjectConfig) { i.Paths = []string{"/a/../b"} }),
		"encoded path":    in(func(i *egress.InjectConfig) { i.Paths = []string{"/a%20b"} }),
		"short secret":    in(func(i *egress.InjectConfig) { i.Secret.Env = "short" }),
		"secret, newline": in(func(i *egress.InjectConfig) { i.Secret.Env = "longenough\nX-A: b" }),
		"framing header":  in(func(i *egress.InjectConfig) { i.Header = "Content-Length" }),
		"header of both": func(c *egress.TargetConfig) {
			in(func(*egress.InjectConfig) {})(c)
			c.Headers = []string{"x-key"}
		},
		"harmless key":    in(func(i *egress.InjectConfig) { i.Header = "user-agent" }),
		"prefix, newline": in(func(i *egress.InjectConfig) { i.Prefix = "a\r\n" }),
		"basic, colon":    in(func(i *egress.InjectConfig) { i.Header, i.Basic = "", "a:b" }),
		"aws, no region":  in(func(i *egress.InjectConfig) { i.Header, i.AWS = "", &egress.AWSConfig{Service: "s3", AccessKeyID: "x"} }),
	} {
		cfg := egress.TargetConfig{URL: "https://api.test"}
		change(&cfg)
		_, err := egress.NewTarget("api", cfg, secretOf)
		if err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v", name, err)
		}
	}
	good, err := egress.NewTarget("api", egress.TargetConfig{URL: "https://API.test"}, secretOf)
	if err != nil || good.Server() != "https://api.test:443" {
		t.Errorf("%v %v", good, err)
	}
}

// TestTargetsOfOneOrigin: two of them are an error, even of different schemes.
func TestTargetsOfOneOrigin(t *testing.T) {
	a, err1 := egress.NewTarget("a", egress.TargetConfig{URL: "https://api.test:8443"}, secretOf)
	b, err2 := egress.NewTarget("b", egress.TargetConfig{URL: "http://API.test:8443"}, secretOf)
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	if _, err := egress.NewTargets(a, b); remit.CodeOf(err) != remit.CodeInvalid {
		t.Error(err)
	}
}

// TestAuthorityIsBound: the box's authority vouches for the hosts of its targets and for nothing else.
func TestAuthorityIsBound(t *testing.T) {
	for _, hosts := range [][]string{{"api.test"}, {"10.1.2.3"}, nil} {
		var list []*egress.Target
		for _, h := range hosts {
			target, err := egress.NewTarget(h, egress.TargetConfig{URL: "https://" + h}, secretOf)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, target)
		}
		w := newWorld(t, list...)
		block, _ := pem.Decode(w.gate.Bundle())
		ca, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		if !ca.PermittedDNSDomainsCritical || len(ca.PermittedDNSDomains) == 0 || len(ca.PermittedIPRanges)+len(ca.ExcludedIPRanges) == 0 || !ca.MaxPathLenZero ||
			time.Until(ca.NotAfter) > 25*time.Hour {
			t.Errorf("%v: %+v", hosts, ca)
		}
		if got := append(ca.PermittedDNSDomains, ca.Subject.CommonName); len(hosts) == 1 && hosts[0] == "api.test" && got[1] != "api.test" {
			t.Errorf("%v", got)
		}
	}
}
