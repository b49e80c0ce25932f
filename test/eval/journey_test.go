// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

// journey are the tools of a made-up suite about journeys, none of whose words the lexicon was made for.
const journey = `[
{"name":"find_lodgings","description":"Find all places to stay in a town.","parameters":{"type":"object","properties":{"town":{"type":"string"}},"required":["town"]}},
{"name":"rate_of_lodging","description":"Get the price for a night at a place to stay.","parameters":{"type":"object","properties":{"lodging":{"type":"string"}},"required":["lodging"]}},
{"name":"lodging_opinions","description":"Get what guests said of places to stay.","parameters":{"type":"object","properties":{"lodgings":{"type":"array","items":{"type":"string"}}},"required":["lodgings"]}},
{"name":"book_lodging","description":"Book a room.","parameters":{"type":"object","properties":{"lodging":{"type":"string","description":"Its name"},"arrival":{"type":"string"},"departure":{"type":"string"}},"required":["lodging","arrival","departure"]}},
{"name":"list_eateries","description":"Lists eateries in a town.","parameters":{"type":"object","properties":{"town":{"type":"string"}},"required":["town"]}},
{"name":"book_table","description":"Book a table at an eatery.","parameters":{"type":"object","properties":{"eatery":{"type":"string"},"start_time":{"type":"string"},"people":{"type":"integer"}},"required":["eatery","start_time"]}},
{"name":"get_car_firms","description":"Get the firms that hire out cars in a town.","parameters":{"type":"object","properties":{"town":{"type":"string"}},"required":["town"]}},
{"name":"hire_car","description":"Hire a car.","parameters":{"type":"object","properties":{"firm":{"type":"string"},"start_time":{"type":"string"},"end_time":{"type":"string"}},"required":["firm","start_time","end_time"]}},
{"name":"my_bookings","description":"Returns the user's bookings.","parameters":{"type":"object","properties":{}}},
{"name":"cancel_booking","description":"Cancel a booking.","parameters":{"type":"object","properties":{"booking_id":{"type":"string"}},"required":["booking_id"]}},
{"name":"list_appointments","description":"Get the appointments of a day.","parameters":{"type":"object","properties":{"day":{"type":"string"}},"required":["day"]}},
{"name":"add_appointment","description":"Adds an appointment to the calendar and tells those who are invited.","parameters":{"type":"object","properties":{"title":{"type":"string"},"start_time":{"type":"string"},"end_time":{"type":"string"},"participants":{"type":"array","items":{"type":"string"},"description":"Email addresses"},"location":{"type":"string"}},"required":["title","start_time"]}},
{"name":"compose_email","description":"Sends an email.","parameters":{"type":"object","properties":{"recipients":{"type":"array","items":{"type":"string"},"description":"Email addresses"},"subject":{"type":"string"},"body":{"type":"string"}},"required":["recipients","subject","body"]}},
{"name":"my_profile","description":"Get the user's name, email address and passport number.","parameters":{"type":"object","properties":{}}}]`

// TestJourney: a suite that nobody had in view, with other words for the same things.
func TestJourney(t *testing.T) {
	var tools []tool
	if err := json.Unmarshal([]byte(journey), &tools); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		prompt string
		acting string // sorted
		in     string // stands in the workflow
	}{
		{"Which eateries in Ghent serve fish, and what is the best of them?", "", ""},
		{"Is there anything cheaper than Blue Heron? Don't book anything yet.", "", ""},
		{"Recommend me a lodging in Ghent with good opinions. How much would 3 nights be?", "", ""},
		{"I am staying in Ghent from May 3 to May 5. Give me the names of all car firms there.", "", ""},
		{"Book me the best rated lodging in Ghent below 120 euros from 3 May to 5 May.", "book_lodging", `{"from":"find-lodgings","path":"/result/*`},
		{"Please make a reservation at the lodging Blue Heron for me, May 3 to 5.", "book_lodging", `"Blue Heron"`},
		{"Could you reserve a table for four at Chez Mirko on Friday at 8pm?", "book_table", `"Chez Mirko"`},
		{"I'd like you to rent a car from Swift Wheels for the weekend.", "hire_car", `"Swift Wheels"`},
		{"Rent a car from the cheapest firm in Ghent for the weekend.", "hire_car", `{"from":"get-car-firms","path":"/result/*`},
		{"Cancel my stay at Blue Heron.", "cancel_booking", `{"from":"my-bookings","path":"/result/*/id"}`},
		{"Look for an eatery with fish, then remind me of it with an appointment at 7pm.", "add_appointment", ""},
		{"Reserve the cheapest eatery in Ghent for Friday 8pm, add it to my calendar, and send Ada (ada@letters.example) an email about it.", "add_appointment book_table compose_email", `"ada@letters.example"`},
		{"Let ada@letters.example know where I am staying.", "compose_email", `"ada@letters.example"`},
		{"Plan a dinner with ada@letters.example in my calendar for 5 May, 7pm.", "add_appointment", `"ada@letters.example"`},
	} {
		p := planFor(c.prompt, tools)
		var acting []string
		for _, m := range p.may {
			if m.skill.acts {
				acting = append(acting, m.skill.Name)
			}
		}
		slices.Sort(acting)
		if got := strings.Join(acting, " "); got != c.acting {
			t.Errorf("%q permits %q, not %q", c.prompt, got, c.acting)
		}
		if text := generate("w", "journey", c.prompt, tools); !strings.Contains(text, c.in) {
			t.Errorf("%q: no %s in\n%s", c.prompt, c.in, text)
		}
	}
}
