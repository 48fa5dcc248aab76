/* CVE-2026-45445: AES-OCB encrypts under one and the same nonce whatever IV it is given, when it is called in one shot. */
#include "host.h"

#include <string.h>

#include <openssl/evp.h>

static int encrypt(unsigned char iv_byte, unsigned char out[16])
{
	static const unsigned char key[16] = { 1 };
	static const unsigned char text[16] = "sixteen letters";
	unsigned char iv[12];
	EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new();
	int done;

	memset(iv, iv_byte, sizeof iv);
	done = EVP_EncryptInit_ex(context, EVP_aes_128_ocb(), NULL, key, iv) == 1 &&
	       EVP_Cipher(context, out, text, sizeof text) == (int)sizeof text;
	EVP_CIPHER_CTX_free(context);
	return done;
}

static const char *verdict(void)
{
	unsigned char one[16], other[16];

	if (!encrypt(1, one) || !encrypt(2, other))
		return "ODD: nothing is encrypted";
	return memcmp(one, other, sizeof one) == 0 ? "VULNERABLE" : "FIXED";
}
