// SPDX-License-Identifier: Apache-2.0

package config

import "path/filepath"

// Authors are who may sign something (S31), and how many of them must. The zero value: nobody must.
type Authors struct {
	Keys      []AuthorKey
	Threshold int
}

// AuthorKey is a public key as it is written; who signs verifies and parses it.
type AuthorKey struct {
	Name string
	Text []byte
	At   string // FILE:LINE
}

// CeilingConfig says where ceilings are and who signs them.
type CeilingConfig struct {
	Dir     string
	Authors Authors
}

type authorsFile struct {
	Keys      []keyFile `yaml:"keys" need:"yes" doc:"The public keys. A person who is listed twice, with an old and a new key, counts once."`
	Threshold *int      `yaml:"threshold" doc:"How many persons must sign. Left out: 1."`
}

type keyFile struct {
	_    struct{} `one:"file,pem"`
	Name word     `yaml:"name" need:"yes" is:"label" doc:"Who, as the ledger names the person."`
	File word     `yaml:"file" is:"text" doc:"A file with the key: PEM, or a line of OpenSSH. Ed25519, or ECDSA on P-256 or P-384."`
	PEM  word     `yaml:"pem" is:"module" doc:"The key itself."`
}

type ceilingsFile struct {
	Dir       word      `yaml:"dir" is:"text" doc:"Its directory. Left out: ceiling in the data directory."`
	Keys      []keyFile `yaml:"keys" doc:"The public keys of who signs ceilings; none of them an author's. Left out: a ceiling is not signed."`
	Threshold *int      `yaml:"threshold" doc:"How many persons must sign. Left out: 1."`
}

func (f *serverFile) authors(s *ServerConfig, name, dir string, out *problems) {
	if f.Authors != nil {
		s.Authors = readAuthors("authors", f.Authors.Keys, f.Authors.Threshold, name, dir, out)
		if len(f.Authors.Keys) == 0 {
			out.add(name, f.TrustDomain.line, "authors: keys is empty: list keys, or leave authors out")
		}
	}
	s.Ceiling.Dir = filepath.Join(s.Data, "ceiling")
	if c := f.Ceiling; c != nil {
		s.Ceiling.Dir = under(dir, or(c.Dir.s, s.Ceiling.Dir))
		s.Ceiling.Authors = readAuthors("ceiling", c.Keys, c.Threshold, name, dir, out)
	}
	if inside(s.Config, s.Ceiling.Dir) || inside(s.Ceiling.Dir, s.Config) {
		out.add(name, f.TrustDomain.line, "ceiling: its directory and that of the declarations lie in one another: choose two")
	}
}

func inside(dir, path string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(rel)
}

func readAuthors(what string, keys []keyFile, threshold *int, name, dir string, out *problems) Authors {
	a := Authors{Threshold: 1}
	persons := map[string]bool{}
	for _, k := range keys {
		persons[k.Name.s] = true
		text := []byte(k.PEM.s)
		if k.File.s != "" {
			var err error
			if text, err = readServer(under(dir, k.File.s)); err != nil {
				out.add(name, k.File.line, "%s: key of %s: %v", what, k.Name.s, err)
				continue
			}
		}
		a.Keys = append(a.Keys, AuthorKey{Name: k.Name.s, Text: text, At: place(name, k.Name.line)})
	}
	if len(keys) == 0 {
		return Authors{}
	}
	if threshold != nil {
		a.Threshold = *threshold
	}
	if a.Threshold < 1 || a.Threshold > len(persons) {
		out.add(name, keys[0].Name.line, "%s: threshold: %d of %d persons: write 1 to %d", what, a.Threshold, len(persons), len(persons))
	}
	return a
}
