// SPDX-License-Identifier: Apache-2.0

package behaviour

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"math"
	"time"

	"remit"
)

// StateVersion is that of what Save writes and of the fold that it belongs to: one that learns otherwise from the same entries has
// another number (TestStateVersion).
const StateVersion = 4

// Save writes all that the detector knows, in bounded space: what it will find depends on nothing else but its Config. The same entries
// leave the same bytes.
func (d *Detector) Save(w io.Writer) error {
	c := &coder{w: bufio.NewWriterSize(w, 64<<10)}
	d.code(c)
	if c.err == nil {
		c.err = c.w.Flush()
	}
	return c.err
}

// Load makes a new detector what another of the same Config was at Save. It reads to the end. It allocates no more than a detector may,
// but whether the bytes are what was saved only a digest can tell. After an error the detector is of no use.
func (d *Detector) Load(r io.Reader) error {
	c := &coder{r: bufio.NewReaderSize(r, 64<<10)}
	d.code(c)
	if _, err := c.r.ReadByte(); c.err == nil && err != io.EOF {
		c.fail()
	}
	return c.err
}

// Digest is of all that decides what is learned from entries; what is read beside them is not in it.
func (c *Config) Digest() [32]byte {
	b, _ := json.Marshal(struct {
		Version  int
		Denials  int
		Within   time.Duration
		Canaries []Canary
		Learn    *Learning
	}{StateVersion, c.Denials, c.Within, c.Canaries, c.Learn}) // plain fields
	return sha256.Sum256(b)
}

// AppendState appends all that the baselines know: the same ledger leaves the same bytes.
func (b *Baselines) AppendState(out []byte) []byte {
	var buf bytes.Buffer
	c := &coder{w: bufio.NewWriter(&buf)}
	b.code(c)
	_ = c.w.Flush() // to memory
	return append(out, buf.Bytes()...)
}

func (d *Detector) code(c *coder) {
	codeNumber(c, &d.last)
	codeRecent(c, &d.bursts, codeText, func(c *coder, b **burst) {
		if *b == nil {
			*b = &burst{}
		}
		codeTime(c, &(*b).last)
		codeSlice(c, &(*b).newest, max(d.cfg.Denials, 0)+1, func(c *coder, x *denial) {
			codeTime(c, &x.at)
			codeNumber(c, &x.seq)
			codeNumber(c, &x.count)
		})
	})
	codeRecent(c, &d.ended, codeText, func(c *coder, e *end) {
		codeTime(c, &e.at)
		codeNumber(c, &e.seq)
	})
	codeRecent(c, &d.raised, func(c *coder, s *subject) {
		codeText(c, &s.kind)
		codeText(c, &s.agent)
		codeText(c, &s.target)
	}, codeTime)
	if d.base != nil {
		d.base.code(c)
	}
}

func (b *Baselines) code(c *coder) {
	c.bytes(b.seed[:])
	codeNumber(c, &b.seen)
	codeTime(c, &b.last)
	codeNumber(c, &b.passed)
	b.limit.code(c)
	codeRecent(c, &b.agents, codeText, func(c *coder, a **agent) {
		if *a == nil {
			*a = &agent{counts: counts{most: agentBuckets, pool: &b.pool}}
		}
		(*a).code(c)
		if c.r != nil {
			buckets, bytes := (*a).owes()
			if c.err == nil && (!b.pool.takes(&b.pool.buckets, buckets) || !b.pool.takes(&b.pool.waiting, bytes)) {
				c.fail()
			}
		}
	})
	codeRecent(c, &b.peers, codeText, func(c *coder, p **counts) {
		if *p == nil {
			*p = &counts{most: peersBuckets}
		}
		(*p).code(c)
	})
	codeRecent(c, &b.runs, codeText, func(c *coder, r **runState) {
		if *r == nil {
			*r = &runState{}
		}
		c.word(&(*r).previous)
		for i := range (*r).distinct {
			codeNumber(c, &(*r).distinct[i])
		}
		for i := range (*r).seen {
			c.word(&(*r).seen[i])
		}
	})
}

func (l *limit) code(c *coder) {
	for i := range l.days {
		c.float(&l.days[i])
	}
	c.float(&l.weeks)
	codeNumber(c, &l.hour)
	c.float(&l.spent)
	codeNumber(c, &l.spentAt)
	c.float(&l.known)
}

func (a *agent) code(c *coder) {
	for _, n := range []*uint32{&a.since, &a.day, &a.hour, &a.heated} {
		codeNumber(c, n)
	}
	codeNumber(c, &a.count)
	c.float(&a.heat)
	c.float(&a.hottest)
	for i := range a.fresh {
		c.word(&a.fresh[i])
	}
	codeText(c, &a.peers)
	codeSlice(c, &a.waiting, maxWaiting, codeWaiting)
	a.counts.code(c)
}

func codeWaiting(c *coder, w *waiting) {
	codeNumber(c, &w.seq)
	codeNumber(c, &w.hour)
	c.float(&w.score)
	codeSlice(c, &w.of, maxOdd, func(c *coder, f *remit.Feature) {
		codeText(c, &f.Name)
		codeText(c, &f.About)
		c.float(&f.Score)
	})
	codeSlice(c, &w.keys, maxKeys, (*coder).half)
	codeSlice(c, &w.odd, maxOdd, (*coder).word)
}

func (k *counts) code(c *coder) {
	n := len(k.buckets)
	codeNumber(c, &n)
	if n < 0 || n > k.most || n&(n-1) != 0 {
		c.fail()
		return
	}
	if c.r != nil {
		k.buckets = make([]bucket, n)
	}
	for i := 0; i < n && c.err == nil; i++ {
		k.buckets[i].code(c)
	}
}

// code has first which places are taken.
func (b *bucket) code(c *coder) {
	var places [1]byte
	for i, t := range b.tags {
		if t != 0 {
			places[0] |= 1 << i
		}
	}
	c.bytes(places[:])
	codeNumber(c, &b.hour)
	for i := range b.tags {
		if places[0]>>i&1 == 1 {
			n := math.Float32bits(b.n[i])
			c.half(&b.tags[i])
			c.half(&n)
			b.n[i] = math.Float32frombits(n)
		}
	}
}

// coder writes values or reads them, by the same calls: what one direction leaves out, the other does not have either. After an error it
// does nothing.
type coder struct {
	w   *bufio.Writer // nil: it reads
	r   *bufio.Reader
	err error
}

var errState = errors.New("this is no saved state of this version")

func (c *coder) fail() {
	if c.err == nil {
		c.err = errState
	}
}

// bytes writes b, or fills it.
func (c *coder) bytes(b []byte) {
	switch {
	case c.err != nil:
	case c.w != nil:
		_, c.err = c.w.Write(b)
	default:
		if _, c.err = io.ReadFull(c.r, b); c.err == io.EOF || c.err == io.ErrUnexpectedEOF {
			c.err = errState
		}
	}
}

func (c *coder) word(n *uint64) {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], *n)
	c.bytes(b[:])
	*n = binary.LittleEndian.Uint64(b[:])
}

func (c *coder) half(n *uint32) {
	var b [4]byte
	binary.LittleEndian.PutUint32(b[:], *n)
	c.bytes(b[:])
	*n = binary.LittleEndian.Uint32(b[:])
}

func (c *coder) float(f *float64) {
	n := math.Float64bits(*f)
	c.word(&n)
	*f = math.Float64frombits(n)
}

func codeNumber[T ~int | ~int64 | ~uint16 | ~uint32 | ~uint64](c *coder, n *T) {
	if c.w != nil {
		var b [binary.MaxVarintLen64]byte
		c.bytes(binary.AppendVarint(b[:0], int64(*n)))
		return
	}
	if c.err != nil {
		return
	}
	v, err := binary.ReadVarint(c.r)
	if *n = T(v); err != nil || int64(*n) != v {
		c.fail()
	}
}

// maxSaved bounds one text: names and places have their own, smaller bounds.
const maxSaved = 64 << 10

func codeText[T ~string](c *coder, s *T) {
	n := len(*s)
	if codeNumber(c, &n); n < 0 || n > maxSaved {
		c.fail()
	}
	if c.err != nil {
		return
	}
	b := make([]byte, n)
	copy(b, *s)
	c.bytes(b)
	*s = T(b)
}

func codeTime(c *coder, t *time.Time) {
	seconds, nanos := t.Unix(), t.Nanosecond()
	codeNumber(c, &seconds)
	codeNumber(c, &nanos)
	if c.r != nil {
		*t = time.Unix(seconds, int64(nanos)).UTC()
	}
}

func codeSlice[T any](c *coder, list *[]T, most int, item func(*coder, *T)) {
	n := len(*list)
	if codeNumber(c, &n); n < 0 || n > most {
		c.fail()
	}
	for i := 0; i < n && c.err == nil; i++ {
		if c.r != nil {
			*list = append(*list, *new(T))
		}
		item(c, &(*list)[i])
	}
}

func codeRecent[K comparable, V any](c *coder, r *recent[K, V], key func(*coder, *K), value func(*coder, *V)) {
	n := len(r.order)
	if codeNumber(c, &n); n < 0 || n > r.most {
		c.fail()
	}
	for i := 0; i < n && c.err == nil; i++ {
		var k K
		var v V
		if c.w != nil {
			k, v = r.order[i], r.m[r.order[i]]
		}
		key(c, &k)
		value(c, &v)
		if _, twice := r.m[k]; c.r != nil && twice {
			c.fail()
		} else if c.r != nil && c.err == nil {
			r.put(k, v)
		}
	}
}
