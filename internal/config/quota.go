// SPDX-License-Identifier: Apache-2.0

package config

import "time"

// Quotas bound what each principal may ask before anything is decided (S35).
type Quotas struct {
	Agents, Points, Runs, People Quota
	Fold                         time.Duration // how long a repeated denial is answered with the recorded one
}

// Quota is what one principal may ask: a second, at once after a pause, and at a time; and bytes of bodies a second.
type Quota struct{ Rate, Burst, Concurrent, Bytes uint32 }

type quotasFile struct {
	Agents quotaFile      `yaml:"agents" doc:"Each agent, at the token endpoint and asking for itself. Left out: rate 500, burst 2000, concurrent 256, bytes 8388608."`
	Points quotaFile      `yaml:"points" doc:"Each enforcement point, which speaks for many. Left out: rate 50000, burst 100000, concurrent 4096, bytes 268435456."`
	Runs   quotaFile      `yaml:"runs" doc:"Each agent that starts, advances and finishes runs. Left out: rate 5, burst 200, concurrent 8, bytes 1048576."`
	People quotaFile      `yaml:"people" doc:"Each person and CI job that manages the server over HTTPS. Left out: rate 20, burst 200, concurrent 8. Bytes cannot be set: a call has at most 4 MiB."`
	Fold   *time.Duration `yaml:"fold" doc:"How long a denial that repeats itself is answered with the one that is on record, and counted; at most 1h. Left out: 10s."`
}

type quotaFile struct {
	Rate       *uint32 `yaml:"rate" doc:"Requests a second, in the long run."`
	Burst      *uint32 `yaml:"burst" doc:"Requests at once, after a pause."`
	Concurrent *uint32 `yaml:"concurrent" doc:"Requests under way at a time."`
	Bytes      *uint32 `yaml:"bytes" doc:"Bytes of request bodies a second; one largest body, 64 KiB, always fits."`
}

func (f *quotasFile) config(name string, out *problems) Quotas {
	q := Quotas{
		Agents: f.Agents.config(name, "agents", out, Quota{500, 2000, 256, 8 << 20}),
		Points: f.Points.config(name, "points", out, Quota{50000, 100000, 4096, 256 << 20}),
		Runs:   f.Runs.config(name, "runs", out, Quota{5, 200, 8, 1 << 20}),
		People: f.People.config(name, "people", out, Quota{20, 200, 8, 0}),
		Fold:   10 * time.Second,
	}
	if f.Fold != nil {
		q.Fold = *f.Fold
	}
	//remit:guard S35 TestQuotas
	if q.Fold > time.Hour {
		out.add(name, 0, "quotas: fold: %s is over 1h: a count that waits longer says too late that somebody floods", q.Fold)
	}
	//remit:guard S35 TestQuotas
	if f.People.Bytes != nil {
		out.add(name, 0, "quotas: people: bytes are not counted: leave them out")
	}
	return q
}

// config fills in what is left out. A quota of nothing would lock everybody out, and is not what no quota means.
func (f *quotaFile) config(name, of string, out *problems, q Quota) Quota {
	for _, v := range []struct {
		key  string
		from *uint32
		to   *uint32
	}{{"rate", f.Rate, &q.Rate}, {"burst", f.Burst, &q.Burst}, {"concurrent", f.Concurrent, &q.Concurrent}, {"bytes", f.Bytes, &q.Bytes}} {
		if v.from == nil {
			continue
		}
		//remit:guard S35 TestQuotas
		if *v.from == 0 {
			out.add(name, 0, "quotas: %s: %s is 0, and nobody could ask anything: leave it out, or write more", of, v.key)
		}
		*v.to = *v.from
	}
	return q
}
