// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"remit"
	"remit/internal/config"
	"remit/internal/credential/kubernetes"
	"remit/internal/evidence/attestation"
	"remit/internal/evidence/citoken"
	"remit/internal/evidence/ticket"
	"remit/internal/gateway/egress"
	"remit/internal/policy"
	"remit/internal/store"
)

// What works on files alone, without a running server.

// offlineDomain stands in for the trust domain, which is the server's and in no file of a configuration.
func offlineDomain() spiffeid.TrustDomain {
	return spiffeid.RequireTrustDomainFromString("check.invalid")
}

func loadOffline(dir string) (*config.Set, error) { return config.Load(dir, offlineDomain()) }

// Check reads and compiles a configuration directory and returns the number of its workflows; ceiling, when not empty, is the directory
// of ceilings that it must stay within. A directory of ceilings is checked by itself. Every key is checked, also those of drivers
// and sources; what only apply can see, such as the files that they name, is not.
func Check(dir, ceiling string) (int, error) {
	if _, err := loadCeiling(dir); err == nil {
		return 0, nil
	}
	set, err := loadOffline(dir)
	if err != nil {
		return 0, err
	}
	var errs []error
	for _, objects := range []map[string]config.Object{set.Targets, set.Sources} {
		for _, name := range slices.Sorted(maps.Keys(objects)) {
			errs = append(errs, checkObject(objects[name]))
		}
	}
	if ceiling != "" {
		bound, err := loadCeiling(ceiling)
		if err != nil {
			return 0, err
		}
		errs = append(errs, bound.Within(set))
	}
	_, err = compile(set, 0, nil, nil)
	return len(set.Workflows), errors.Join(append(errs, err)...)
}

// keysOf are the keys of each type of target and source, by kind: what the tables of drivers decode.
func keysOf() map[string]map[string]any {
	return map[string]map[string]any{
		"Target": {"kubernetes": &kubernetesTarget{}, "external": &struct{}{}, "http": &egress.TargetConfig{}, "postgres": &postgresTarget{}},
		"EvidenceSource": {"scan": &attestation.Config{}, "provenance": &attestation.Config{}, "ci": &attestation.Config{},
			"ci-token": &citoken.Config{}, "ticket": &ticket.Config{}},
	}
}

func checkObject(o config.Object) error {
	keys, ok := keysOf()[o.Kind][o.Type]
	if !ok {
		return o.Errorf("no such type: %q; there are %s", o.Type, strings.Join(slices.Sorted(maps.Keys(keysOf()[o.Kind])), ", "))
	}
	return o.Decode(keys)
}

func loadCeiling(dir string) (*config.Ceiling, error) {
	files, err := config.Read(dir)
	if err != nil {
		return nil, err
	}
	return config.ParseCeiling(files)
}

// Export prints the workflows of a configuration directory as Rego, by file.
func Export(dir string) (map[string][]byte, error) {
	set, err := loadOffline(dir)
	if err != nil {
		return nil, err
	}
	plan, err := compile(set, 0, nil, nil)
	if err != nil {
		return nil, err
	}
	return plan.Export(), nil
}

// TestPolicy runs files of cases (.yaml) and Rego tests (_test.rego) against a configuration directory.
func TestPolicy(ctx context.Context, dir string, files []string) ([]policy.Outcome, error) {
	set, err := loadOffline(dir)
	if err != nil {
		return nil, err
	}
	plan, err := compile(set, 0, nil, nil)
	if err != nil {
		return nil, err
	}
	var out []policy.Outcome
	var tests []policy.Rule
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		if strings.HasSuffix(file, ".rego") {
			tests = append(tests, policy.Rule{Name: filepath.Base(file), Module: string(b)})
			continue
		}
		cases, err := policy.ParseCases(file, b)
		if err != nil {
			return nil, err
		}
		out = append(out, plan.Test(ctx, cases)...)
	}
	if len(tests) == 0 {
		return out, nil
	}
	more, err := policy.TestRules(ctx, rulesOf(set), tests)
	return append(out, more...), err
}

func rulesOf(set *config.Set) []policy.Rule {
	var out []policy.Rule
	for _, r := range set.Rules {
		out = append(out, policy.Rule{Name: r.Name, Module: r.Module})
	}
	return out
}

// OpenTail opens the entries of a server's state for reading, also while the server runs.
func OpenTail(path string) (*store.Reader, error) { return store.OpenReader(path) }

// Schema returns the JSON Schema of the configuration files, with the keys of every driver and source of the tables.
func Schema() []byte {
	var extras []config.Extra
	for _, kind := range slices.Sorted(maps.Keys(keysOf())) {
		types := keysOf()[kind]
		for _, name := range slices.Sorted(maps.Keys(types)) {
			extras = append(extras, config.Extra{Kind: kind, Type: name, Config: reflect.ValueOf(types[name]).Elem().Interface()})
		}
	}
	return config.Schema(extras...)
}

// SweepOptions say where the sweeper looks.
type SweepOptions struct {
	Kubeconfig   string
	Namespaces   []string
	Installation string
}

// SweepKubernetes ends expired leases of an installation in a cluster, and returns how many.
func SweepKubernetes(ctx context.Context, o SweepOptions) (int, error) {
	if len(o.Namespaces) == 0 || o.Installation == "" {
		return 0, &remit.Error{Code: remit.CodeInvalid, Msg: "--namespaces and --installation are needed", Hint: "they stand in the target's file"}
	}
	d, err := kubernetes.New(kubernetes.Config{Kubeconfig: o.Kubeconfig, Namespaces: o.Namespaces, Installation: o.Installation})
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	n, err := d.Sweep(ctx)
	if err != nil {
		return n, fmt.Errorf("sweep: %w", err)
	}
	return n, nil
}
