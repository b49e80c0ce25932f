// SPDX-License-Identifier: Apache-2.0

package config

import (
	"slices"
	"strings"
	"time"

	"remit"
)

// Job says which CI jobs, by the tokens that their CI system gives them, are a principal here (S9).
type Job struct {
	Name     remit.Name
	Issuer   string
	Audience string
	CA       string            // a PEM file; empty: the system's
	Claims   map[string]string // what the token must say
	Roles    []string
	Session  time.Duration
}

type jobFile struct {
	Name     word        `yaml:"name" need:"yes" is:"label" doc:"The job is operator/NAME, as workflows name it in start. No person may have this name."`
	Issuer   word        `yaml:"issuer" need:"yes" is:"url" doc:"The issuer of the CI system's tokens, exactly as their iss has it."`
	Audience word        `yaml:"audience" need:"yes" is:"text" doc:"The audience that tokens must be for, alone. No other service may have it."`
	CA       word        `yaml:"ca" is:"text" doc:"A PEM file with the roots that the issuer's certificate is verified with. Left out: the system's."`
	Claims   []claimFile `yaml:"claims" need:"yes" doc:"What the token must say; all of them. One must be an immutable id, such as repository_id or project_id."`
	Roles    []word      `yaml:"roles" is:"role" doc:"What else the job may do. Left out: what workflows let it do, and adding evidence."`
	Session  span        `yaml:"session" doc:"How long its login lasts, at most 6h. Left out: 15m."`
}

type claimFile struct {
	Claim word `yaml:"claim" need:"yes" is:"text" doc:"The claim."`
	Is    word `yaml:"is" need:"yes" is:"text" doc:"The text or number that it must be."`
}

func (f *serverFile) jobs(s *ServerConfig, name, dir string, out *problems) {
	for _, j := range f.Jobs {
		job := Job{Name: remit.Name("operator/" + j.Name.s), Issuer: j.Issuer.s, Audience: j.Audience.s, Claims: map[string]string{},
			Session: j.Session.or(15*time.Minute, 6*time.Hour, name, "jobs: session", out)}
		if j.CA.s != "" {
			job.CA = under(dir, j.CA.s)
		}
		for _, r := range j.Roles {
			job.Roles = append(job.Roles, r.s)
		}
		lasting := false
		for _, c := range j.Claims {
			job.Claims[c.Claim.s] = c.Is.s
			lasting = lasting || strings.HasSuffix(c.Claim.s, "_id")
		}
		//remit:guard S16 TestJobs
		if !lasting {
			out.add(name, j.Name.line, "jobs: %s: claims have no immutable id: who takes over a name would be this job; add repository_id, project_id or the like", j.Name.s)
		}
		_, person := s.Local(job.Name)
		//remit:guard S2 TestJobs
		if person || slices.ContainsFunc(s.Jobs, func(o Job) bool { return o.Name == job.Name }) {
			out.add(name, j.Name.line, "jobs: the name %s stands twice: the ledger could not tell who it was", j.Name.s)
		}
		s.Jobs = append(s.Jobs, job)
	}
}
