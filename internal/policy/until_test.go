// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"testing"
	"time"

	"remit"
)

// S12: an answer ends when its window closes and when the first fact is too old.
func TestUntil(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	day, night := &remit.Hours{From: 8 * 60, To: 18 * 60, Zone: berlin}, &remit.Hours{From: 22 * 60, To: 6*60 + 30, Zone: berlin}
	toMidnight := &remit.Hours{From: 8 * 60, To: 24 * 60, Zone: berlin}
	for name, c := range map[string]struct {
		hours    *remit.Hours
		within   time.Duration
		age      time.Duration
		at, want string // local
	}{
		"nothing":                  {nil, 0, time.Minute, "2026-11-25 12:00", ""},
		"by day":                   {day, 0, time.Minute, "2026-11-25 17:59", "2026-11-25 18:00"},
		"to midnight":              {toMidnight, 0, time.Minute, "2026-11-25 17:59", "2026-11-26 00:00"},
		"before midnight":          {night, 0, time.Minute, "2026-12-31 23:00", "2027-01-01 06:30"},
		"after midnight":           {night, 0, time.Minute, "2026-11-25 05:00", "2026-11-25 06:30"},
		"clocks go back at 3":      {night, 0, time.Minute, "2026-10-24 23:00", "2026-10-25 06:30"},
		"the fact gets too old":    {day, time.Hour, 58 * time.Minute, "2026-11-25 12:00", "2026-11-25 12:02"},
		"the window closes before": {day, 24 * time.Hour, 0, "2026-11-25 17:00", "2026-11-25 18:00"},
	} {
		at, err := time.ParseInLocation("2006-01-02 15:04", c.at, berlin)
		if err != nil {
			t.Fatal(err)
		}
		m := &remit.Match{Permission: &remit.Permission{Hours: c.hours}, Needs: []remit.Need{{Within: c.within}}}
		got := until(&remit.Request{At: at}, m, []remit.Found{{Evidence: &remit.Evidence{Made: at.Add(-c.age)}}})
		if text := got.In(berlin).Format("2006-01-02 15:04"); text != c.want && (c.want != "" || !got.IsZero()) {
			t.Errorf("%s: until %s, not %s", name, text, c.want)
		}
	}
}
