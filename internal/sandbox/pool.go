// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Pool keeps sandboxes of one kind prepared. Each is taken once, claimed by who takes it, and never comes back.
type Pool struct {
	prepare func(context.Context) (*Instance, error)
	ready   chan *Instance
	failed  func(error)
}

// PoolConfig says what a pool keeps.
type PoolConfig struct {
	// Prepare makes one, with an ID and folder of sockets of its own. No credential may be near it yet.
	Prepare func(context.Context) (*Instance, error)
	Size    int         // how many are kept, at least 1
	Failed  func(error) // is told of what goes wrong in the background
}

// NewPool makes an empty pool; Run fills it.
func NewPool(c PoolConfig) (*Pool, error) {
	if c.Prepare == nil || c.Failed == nil || c.Size < 1 {
		return nil, errors.New("make a pool of sandboxes: Prepare, Failed and a size of at least 1 are needed")
	}
	return &Pool{prepare: c.Prepare, failed: c.Failed, ready: make(chan *Instance, c.Size-1)}, nil
}

// Run keeps the pool full until ctx ends, then destroys what nobody took. It is called once.
func (p *Pool) Run(ctx context.Context) error {
	wait := time.Second
	for ctx.Err() == nil {
		i, err := p.prepare(ctx)
		if err != nil {
			if ctx.Err() == nil {
				p.failed(fmt.Errorf("prepare a sandbox for the pool: %w", err))
			}
			select {
			case <-ctx.Done():
			case <-time.After(wait):
				wait = min(2*wait, time.Minute)
			}
			continue
		}
		wait = time.Second
		select {
		case p.ready <- i:
		case <-ctx.Done():
			p.drop(i)
		}
	}
	for {
		select {
		case i := <-p.ready:
			p.drop(i)
		default:
			return nil
		}
	}
}

func (p *Pool) drop(i *Instance) {
	if err := i.Destroy(context.Background()); err != nil {
		p.failed(err)
	}
}

// Take returns a claimed sandbox that was not started: a prepared one, or a new one where none is ready.
func (p *Pool) Take(ctx context.Context) (*Instance, error) {
	var i *Instance
	select {
	case i = <-p.ready:
	default:
		var err error
		if i, err = p.prepare(ctx); err != nil {
			return nil, err
		}
	}
	if err := i.Claim(); err != nil {
		return nil, err
	}
	return i, nil
}
