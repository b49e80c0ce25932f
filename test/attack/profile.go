// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Profile says what is attacked, as whom, and what may be touched. docs/attack.md is its reference.
type Profile struct {
	Server      string              `yaml:"server"`       // https://HOST:PORT
	Bundle      string              `yaml:"bundle"`       // PEM file that verifies the server's certificate
	TrustDomain string              `yaml:"trust_domain"` // company.com
	Remit       string              `yaml:"remit"`        // the binary; default: remit in PATH
	Workload    string              `yaml:"workload"`     // socket of the Workload API
	Admin       string              `yaml:"admin"`        // admin socket, which the user who attacks must be able to use
	Dir         string              `yaml:"dir"`          // the server's directory, where the attacker has the host
	Log         string              `yaml:"log"`          // where the server's log goes, at --log-level debug
	Identities  map[string]Identity `yaml:"identities"`
	Run         Run                 `yaml:"run"`
	Act         Act                 `yaml:"act"`
	Touch       []string            `yaml:"touch"`
	lab         *lab
}

// Identity is a workload that the attacker has taken over.
type Identity struct {
	Name string `yaml:"name"` // agent/deploy
	UID  *int   `yaml:"uid"`  // the user that attests it; left out: the one that runs the attacks
}

// Run is how a run is started in which the identity "agent" may act.
type Run struct {
	Workflow string            `yaml:"workflow"`
	Params   map[string]string `yaml:"params"`
}

// Act is what the identity "agent" may do in such a run. It is decided, never done.
type Act struct {
	Action string            `yaml:"action"`
	Target string            `yaml:"target"`
	Args   map[string]string `yaml:"args"`
}

// touchable is what attacks may change in an installation beyond starting runs and asking.
var touchable = []string{"suspend", "flood", "restart", "evidence", "config"}

func readProfile(file string) (*Profile, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	dec := yaml.NewDecoder(bytes.NewReader(b))
	dec.KnownFields(true)
	p := &Profile{}
	if err := dec.Decode(p); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read profile %s: %w", file, err)
	}
	if p.Server == "" || p.Bundle == "" || p.TrustDomain == "" {
		return nil, fmt.Errorf("profile %s: server, bundle and trust_domain are required: see docs/attack.md", file)
	}
	for _, t := range p.Touch {
		if !slices.Contains(touchable, t) {
			return nil, fmt.Errorf("profile %s: touch %q is none of %v", file, t, touchable)
		}
	}
	if p.Remit == "" {
		p.Remit = "remit"
	}
	p.Server = strings.TrimSuffix(p.Server, "/")
	return p, nil
}

// lacks returns what a script needs and the profile does not give; "" for nothing.
func (p *Profile) lacks(needs []string) string {
	var missing []string
	for _, n := range needs {
		if !p.has(n) {
			missing = append(missing, n)
		}
	}
	return strings.Join(missing, ", ")
}

func (p *Profile) has(need string) bool {
	if what, ok := strings.CutPrefix(need, "touch:"); ok {
		return p.lab != nil || slices.Contains(p.Touch, what)
	}
	switch need {
	case "admin":
		return p.Admin != ""
	case "workload":
		return p.Workload != ""
	case "dir":
		return p.Dir != ""
	case "log":
		return p.Log != ""
	case "root":
		return os.Getuid() == 0
	case "run":
		return p.Admin != "" && p.Workload != "" && p.Run.Workflow != "" && p.Act.Action != "" && p.has("agent")
	case "lab":
		return p.lab != nil
	case "clock":
		return p.lab != nil && canSkew()
	case "login":
		return p.lab != nil && p.lab.provider != nil
	case "database":
		return p.lab != nil && p.lab.database != nil
	case "kubernetes":
		return p.lab != nil && p.lab.cluster != nil
	}
	_, ok := p.Identities[need]
	return ok && p.Workload != ""
}
