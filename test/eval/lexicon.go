// SPDX-License-Identifier: Apache-2.0

package main

import "strings"

// verbs are the words of tools that act, each with the words by which people ask for that.
var verbs = lexicon(`
send: send email e-mail mail message dm tell notify inform write reply respond forward text ping ask post share pay transfer refund reimburse repay return give wire let answer contact invite say drop
email: email e-mail mail send write reply respond answer notify tell inform let compose
compose: compose write draft send email e-mail mail message tell notify inform let reply respond answer forward
hire: hire rent book reserve
remind: remind
message: message dm tell send write text ping reply respond answer notify inform ask
notify: notify tell inform message alert send
post: post publish upload put share submit
publish: publish post upload
upload: upload post put attach
update: update change adjust modify edit set correct amend increase decrease raise lower replace switch fix rename complete
edit: edit change update modify correct
modify: modify change update edit adjust
change: change update modify set reset switch
set: set change update adjust
schedule: schedule set-up setup plan automate arrange
reschedule: reschedule move postpone shift change delay push update
create: create make add set-up write draft schedule book plan put organize organise generate start save prepare arrange block reserve remind
make: make create book reserve pay place
add: add append include insert put invite write attach create schedule plan set-up arrange remind make
append: append add include insert put write
insert: insert add put include
write: write create add save put append
delete: delete remove erase clear discard drop trash
remove: remove delete kick drop uninvite revoke
cancel: cancel delete remove drop abort
invite: invite add onboard
share: share give grant send
reserve: reserve book rent hire make
book: book reserve rent hire make
rent: rent hire book reserve
buy: buy purchase order get
order: order buy purchase get
purchase: purchase buy order
pay: pay send transfer settle refund
refund: refund reimburse repay return pay send
transfer: transfer send pay move wire
move: move transfer put rename
rename: rename change
reply: reply respond answer write send
respond: respond reply answer
forward: forward send share
submit: submit send file post
approve: approve accept confirm
reject: reject decline refuse
accept: accept confirm approve
close: close resolve end
open: open create
assign: assign give allocate
start: start begin launch run
stop: stop end halt
run: run execute start
execute: execute run
enable: enable activate turn-on
disable: disable deactivate turn-off
subscribe: subscribe follow join
unsubscribe: unsubscribe leave cancel
join: join enter
leave: leave quit exit
upgrade: upgrade update
install: install add
save: save store write create
store: store save
copy: copy duplicate
import: import load
export: export download save
grant: grant give allow share
revoke: revoke remove withdraw
block: block ban
unblock: unblock unban
archive: archive
mark: mark flag set
rate: rate review
like: like
comment: comment reply write
follow: follow
play: play
record: record log
log: log record
register: register enroll sign-up
login: login
withdraw: withdraw take
deposit: deposit put
donate: donate give
file: file submit
`)

// lexicon reads lines of WORD: SYNONYMS.
func lexicon(text string) map[string]map[string]bool {
	out := map[string]map[string]bool{}
	for line := range strings.Lines(text) {
		if word, synonyms, ok := strings.Cut(line, ":"); ok {
			out[word] = set(synonyms)
		}
	}
	return out
}

// implied are the nouns that a verb means without saying them.
var implied = map[string]string{
	"pay": "money", "refund": "money", "reimburse": "money", "repay": "money", "transfer": "money", "wire": "money", "donate": "money", "withdraw": "money",
	"email": "email", "e-mail": "email", "mail": "email", "message": "message", "dm": "message", "ping": "message", "text": "message", "reschedule": "event", "postpone": "event", "remind": "event",
}

// classes are nouns that mean the same to a user and in the names of tools.
var classes = func() map[string]string {
	out := map[string]string{}
	for class, words := range lexicon(`
money: money transaction payment transfer bill invoice rent fund refund subscription difference salary fee tax donation debt iban
email: email e-mail mail
message: message dm
event: event calendar appointment meeting reminder
file: file document doc folder drive spreadsheet
user: user member person people friend colleague
password: password passphrase pin
profile: info information profile
web: website webpage web page site url link blog article
participant: participant attendee guest invitee
`) {
		for w := range words {
			out[w] = class
		}
	}
	return out
}()

// noun is the class of a word, or the word in the singular.
func noun(w string) string {
	w = singular(w)
	if c, ok := classes[w]; ok {
		return c
	}
	return w
}

func singular(w string) string {
	switch {
	case len(w) > 4 && strings.HasSuffix(w, "ies"):
		return strings.TrimSuffix(w, "ies") + "y"
	case len(w) > 3 && strings.HasSuffix(w, "s") && !strings.HasSuffix(w, "ss") && !strings.HasSuffix(w, "us"):
		return strings.TrimSuffix(w, "s")
	}
	return w
}

// either are words that are a verb or a noun, depending on what stands before them.
var either = set("email e-mail mail message text post share book order schedule file note update change plan transfer pay rent set move record reply rate answer return contact drop start play copy comment log mark like block report request review refund donate follow purchase upload visit say run address let put fix make complete save store label tag")

// before are the words after which such a word is a verb.
var before = set("please and then to or also should must will can could you want just kindly now first finally but next i'd like need , would afterwards lastly")

// after are the words before which such a word is a noun; linking are those before which it is one unless a clause begins with it.
var (
	after   = set("address addresses list channel details is was are has body subject")
	linking = set("from about that with of in")
)

// narrow are verbs that an order in somebody else's words is never enough for: they destroy, admit or publish.
var narrow = set("delete remove cancel invite share post publish upload revoke grant block approve reject archive unsubscribe leave disable stop execute run install")
