// SPDX-License-Identifier: Apache-2.0

package behaviour

// recent remembers the newest things, at most so many: the order of their first mention decides, so that the same entries leave the
// same behind.
type recent[K comparable, V any] struct {
	most  int
	m     map[K]V
	order []K // may hold what was dropped
	gone  func(K, V)
}

func (r *recent[K, V]) get(k K) (V, bool) {
	v, ok := r.m[k]
	return v, ok
}

func (r *recent[K, V]) put(k K, v V) {
	if r.m == nil {
		r.m = map[K]V{}
	}
	if _, known := r.m[k]; !known {
		r.order = append(r.order, k)
	}
	r.m[k] = v
	for len(r.order) > r.most {
		if v, ok := r.m[r.order[0]]; ok && r.gone != nil {
			r.gone(r.order[0], v)
		}
		delete(r.m, r.order[0])
		r.order = r.order[1:]
	}
}

func (r *recent[K, V]) drop(which func(K) bool) {
	kept := r.order[:0:0]
	for _, k := range r.order {
		if which(k) {
			delete(r.m, k)
			continue
		}
		kept = append(kept, k)
	}
	r.order = kept
}
