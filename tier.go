// SPDX-License-Identifier: Apache-2.0

package remit

import (
	"fmt"
	"strings"
)

// Tier says what stands between a tool and its host. Higher is better. The zero value is no tier: as what a driver offers it
// satisfies nothing, and as what is asked for nothing satisfies it.
type Tier uint8

// The tiers, weakest first.
const (
	_           Tier = iota
	TierRemote       // runs elsewhere: nothing that Remit made stands around it (S27)
	TierProcess      // namespaces, landlock and a system-call filter on the host's kernel: never called isolated
	TierKernel       // a kernel of its own in user space (gVisor)
	TierVM           // a virtual machine on hardware
)

var tierNames = [...]string{"", "remote", "process", "kernel", "vm"}

// ParseTier reads remote, process, kernel or vm, and nothing else.
func ParseTier(s string) (Tier, error) {
	for i, name := range tierNames {
		if i > 0 && name == s {
			return Tier(i), nil
		}
	}
	return 0, &Error{Code: CodeInvalid, Msg: fmt.Sprintf("%.40q is not a tier", s), Hint: "write one of " + strings.Join(tierNames[1:], ", ")}
}

// AtLeast reports whether a sandbox of tier t is good enough where least is asked.
func (t Tier) AtLeast(least Tier) bool { return t.valid() && least.valid() && t >= least }

func (t Tier) valid() bool { return t >= TierRemote && t <= TierVM }

func (t Tier) String() string {
	if !t.valid() {
		return "none"
	}
	return tierNames[t]
}

// MarshalText writes the tier's name; no tier is the empty text.
func (t Tier) MarshalText() ([]byte, error) {
	if !t.valid() {
		return nil, nil
	}
	return []byte(t.String()), nil
}

// UnmarshalText reads what MarshalText wrote; anything else is an error.
func (t *Tier) UnmarshalText(b []byte) (err error) {
	if *t = 0; len(b) > 0 {
		*t, err = ParseTier(string(b))
	}
	return err
}
