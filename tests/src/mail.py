"""A handler for aiosmtpd: writes each mail as a line of JSON, as Python's own reader of mail has it. There is no `nobody`."""
import email
import email.policy
import json


class Told:
    async def handle_RCPT(self, server, session, envelope, address, options):
        if address.startswith("nobody@"):
            return "550 no such user"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        mail = email.message_from_bytes(envelope.content, policy=email.policy.default)
        told = {name: str(mail[name]) for name in ("From", "To", "Subject")}
        # On their way, mails' lines end in CR LF.
        body = mail.get_content().replace("\r\n", "\n")
        print(json.dumps({**told, "recipients": envelope.rcpt_tos, "body": body}), flush=True)
        return "250 OK"
